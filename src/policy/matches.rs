//! How many services and applications each glob of a document matches: a glob that matches none is most likely a mistake.

use serde::Serialize;
use wildmatch::WildMatch;

use crate::{
    error::Mistake,
    policy::{compiled::Policy, document::PolicyConfig, globs::Globs},
};

/// The matches of a glob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GlobMatches {
    /// Where in the document it stands, as `include[0]` or `overrides[com.example.*]`.
    pub at: String,
    /// The glob.
    pub glob: String,
    /// How many it matches.
    pub count: usize,
    /// Of what: `services` or `applications`.
    pub of: &'static str,
}

impl Policy {
    /// The matches of every glob in the document among these services of the registry and these applications.
    pub fn matches<'t>(
        &self,
        services: impl Iterator<Item = &'t str>,
        applications: impl IntoIterator<Item = &'t str>,
    ) -> Vec<GlobMatches> {
        let PolicyConfig { include, exclude, mtls, direct, overrides, .. } = self.document();
        let list = |key: &str, globs: &[String]| -> Vec<(String, String)> {
            globs.iter().enumerate().map(|(n, glob)| (format!("{key}[{n}]"), glob.clone())).collect()
        };
        let mut all = [list("include", include), list("exclude", exclude)].concat();
        all.extend(overrides.keys().map(|glob| (Mistake::entry("overrides", glob), glob.clone())));
        let on_services = Globs::new(all.iter().map(|(_, glob)| glob.as_str()));
        let mut counts = vec![0; all.len()];
        services.for_each(|id| on_services.matching(id).into_iter().for_each(|n| counts[n] += 1));
        let count = |of| move |((at, glob), count): ((String, String), usize)| GlobMatches { at, glob, count, of };
        let mut matches: Vec<GlobMatches> = all.into_iter().zip(counts).map(count("services")).collect();

        let mut all = list("direct.applications", &direct.applications);
        let rules = mtls.iter().enumerate();
        all.extend(rules.flat_map(|(n, rule)| list(&format!("mtls[{n}].applications"), &rule.applications)));
        let globs: Vec<WildMatch> = all.iter().map(|(_, glob)| WildMatch::new(glob)).collect();
        let mut counts = vec![0; all.len()];
        for application in applications {
            counts.iter_mut().zip(&globs).for_each(|(count, glob)| *count += usize::from(glob.matches(application)));
        }
        matches.extend(all.into_iter().zip(counts).map(count("applications")));
        matches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_glob_is_counted_and_none_is_left_out() {
        let document = serde_json::json!({
            "include": ["com.*"], "exclude": ["*.B", "nobody"], "overrides": {"com.a.*": {"port": 1}, "*#@#t#*": {}},
            "direct": {"applications": ["or*", "x"]}, "mtls": [{"zones": ["z"]}, {"applications": ["*"]}],
        });
        let policy = Policy::compile(serde_json::from_value(document).unwrap(), None).unwrap();
        let ids = ["com.a.A#@#t#@#SOFA", "com.a.B#@#u#@#SOFA", "org.B"];
        let matches = policy.matches(ids.into_iter(), ["orders", "users"]);
        let told: Vec<_> = matches.iter().map(|it| (&*it.at, &*it.glob, it.count, it.of)).collect();
        assert_eq!(
            told,
            [
                ("include[0]", "com.*", 2, "services"),
                ("exclude[0]", "*.B", 2, "services"),
                ("exclude[1]", "nobody", 0, "services"),
                ("overrides[*#@#t#*]", "*#@#t#*", 1, "services"),
                ("overrides[com.a.*]", "com.a.*", 2, "services"),
                ("direct.applications[0]", "or*", 1, "applications"),
                ("direct.applications[1]", "x", 0, "applications"),
                ("mtls[1].applications[0]", "*", 2, "applications"),
            ]
        );
    }
}
