//! How many services and applications each glob of a policy is about, for who wrote it: a glob with a slip in it is about none.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::policy::compiled::Policy;

/// A glob of a policy, and how much it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GlobMatches {
    /// The setting that it stands in, as `policy.overrides` or `policy.mtls[0].applications`.
    pub setting: String,
    /// Its text.
    pub glob: String,
    /// How many services it matches; in `direct.applications` and `mtls` how many applications.
    pub matches: usize,
}

impl Display for GlobMatches {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.setting, self.glob)
    }
}

/// Counts, as services and applications are named.
#[derive(Debug)]
pub struct Matches<'p> {
    policy: &'p Policy,
    include: Vec<usize>,
    exclude: Vec<usize>,
    overrides: Vec<usize>,
    direct: Vec<usize>,
    mtls: Vec<Vec<usize>>,
}

impl<'p> Matches<'p> {
    /// Nobody was named yet.
    pub fn new(policy: &'p Policy) -> Self {
        let Policy { include, exclude, exceptions, direct, mtls, .. } = policy;
        Self {
            policy,
            include: vec![0; include.len()],
            exclude: vec![0; exclude.len()],
            overrides: vec![0; exceptions.len()],
            direct: vec![0; direct.len()],
            mtls: mtls.iter().map(|(applications, _)| vec![0; applications.len()]).collect(),
        }
    }

    /// Counts a service for each glob that matches its dataInfoId. A service that is excluded counts for an override as well.
    pub fn service(&mut self, data_info_id: &str) {
        let Policy { include, exclude, exceptions, .. } = self.policy;
        let all =
            [(include, &mut self.include), (exclude, &mut self.exclude), (exceptions, &mut self.overrides)].into_iter();
        for (globs, counts) in all {
            globs.matching(data_info_id).into_iter().for_each(|n| counts[n] += 1);
        }
    }

    /// Counts an application for each glob that matches its name, as its publishers write it.
    pub fn application(&mut self, name: &str) {
        let Policy { direct, mtls, .. } = self.policy;
        let mtls = mtls.iter().map(|(applications, _)| applications).zip(&mut self.mtls);
        for (globs, counts) in [(direct, &mut self.direct)].into_iter().chain(mtls) {
            globs.iter().zip(counts).for_each(|(glob, count)| *count += usize::from(glob.matches(name)));
        }
    }

    /// Whether a glob on applications matches none so far.
    pub fn misses_applications(&self) -> bool {
        self.direct.iter().chain(self.mtls.iter().flatten()).any(|matches| *matches == 0)
    }

    /// Every glob, in the order of the document's settings.
    pub fn all(&self) -> Vec<GlobMatches> {
        let config = self.policy.document();
        let of = |setting: &str, globs: &mut dyn Iterator<Item = &String>, counts: &[usize]| {
            let glob = |(glob, count): (&String, &usize)| GlobMatches {
                setting: format!("policy.{setting}"),
                glob: glob.clone(),
                matches: *count,
            };
            globs.zip(counts).map(glob).collect::<Vec<_>>()
        };
        let mut all = of("include", &mut config.include.iter(), &self.include);
        all.extend(of("exclude", &mut config.exclude.iter(), &self.exclude));
        for (n, (rule, counts)) in config.mtls.iter().zip(&self.mtls).enumerate() {
            all.extend(of(&format!("mtls[{n}].applications"), &mut rule.applications.iter(), counts));
        }
        all.extend(of("direct.applications", &mut config.direct.applications.iter(), &self.direct));
        all.extend(of("overrides", &mut self.policy.override_globs.iter(), &self.overrides));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicyConfig;

    #[test]
    fn each_glob_counts_what_it_matches() {
        let document = serde_json::json!({
            "include": ["com.*"],
            "exclude": ["*Internal*", "org.*"],
            "mtls": [{ "zones": ["z"] }, { "applications": ["pay", "sh?p"] }],
            "direct": { "applications": ["*o*", "none"] },
            "overrides": { "com.a.B:1.0@DEFAULT": {}, "com.a.B:1.0@DEFAULT#": {}, "com.a.*": {} },
        });
        let policy = Policy::new(serde_json::from_value::<PolicyConfig>(document).unwrap(), &[], "ns").unwrap();
        let mut matches = Matches::new(&policy);
        for id in ["com.a.B:1.0@DEFAULT#@#x#@#SOFA", "com.a.Internal:1.0@DEFAULT#@#x#@#SOFA", "net.C#@#x#@#SOFA"] {
            matches.service(id);
        }
        ["shop", "ship", "orders"].into_iter().for_each(|name| matches.application(name));
        let all = matches.all();
        let all: Vec<_> = all.iter().map(|it| (&*it.setting, &*it.glob, it.matches)).collect();
        assert_eq!(
            all,
            [
                ("policy.include", "com.*", 2),
                ("policy.exclude", "*Internal*", 1),
                ("policy.exclude", "org.*", 0),
                ("policy.mtls[1].applications", "pay", 0),
                ("policy.mtls[1].applications", "sh?p", 2),
                ("policy.direct.applications", "*o*", 2),
                ("policy.direct.applications", "none", 0),
                ("policy.overrides", "com.a.B:1.0@DEFAULT#", 0),
                ("policy.overrides", "com.a.B:1.0@DEFAULT", 1),
                ("policy.overrides", "com.a.*", 2),
            ]
        );
    }
}
