//! When the first view counts as complete.
//!
//! A response is the whole truth for istiod, so nothing is said before the registry's clients had the time to come
//! back. With local scope that is `mox.protect.startup-hold` after the engine began to listen (a session server lets its
//! clients in just before that), or as soon as there are 95 % of the publishers of the last good state.

use std::{io::Write, path::PathBuf, time::Duration};

use tokio::time::Instant;

use crate::config::Config;

const FILE: &str = "last-good.json";
/// How long a lower count has to stand before it counts as good: a registry that lost its clients and then restarts must
/// not find that everybody is back.
const LOWERED_AFTER: Duration = Duration::from_secs(600);

/// The gate and the count it remembers over restarts.
#[derive(Debug)]
pub struct Gate {
    hold: Duration,
    file: Option<PathBuf>,
    baseline: Option<usize>,
    lower_since: Option<Instant>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct LastGood {
    format: u32,
    publishers: usize,
}

impl Gate {
    /// Reads the last good count if there is a state directory.
    pub fn new(config: &Config) -> Self {
        let file = config.state_dir.as_ref().map(|dir| dir.join(FILE));
        let baseline = file.as_ref().and_then(read);
        if file.is_none() {
            tracing::info!("no mox.state-dir is set, so a restart always waits for mox.protect.startup-hold");
        }
        Self { hold: config.protect.startup_hold, file, baseline, lower_since: None }
    }

    /// When the hold ends for an engine that listens since `since`; `None`: never by itself.
    pub fn opens_at(&self, since: Option<Instant>) -> Option<Instant> {
        since?.checked_add(self.hold)
    }

    /// Whether the view is complete.
    pub fn is_open(&self, loaded: bool, since: Option<Instant>, publishers: usize) -> bool {
        let held = self.opens_at(since).is_none_or(|at| Instant::now() < at);
        let regained = self.baseline.is_some_and(|good| good > 0 && publishers * 100 >= good * 95);
        loaded || !held || regained
    }

    /// Keeps the count of a complete view for the next start: a higher one at once, a lower one when it has stood.
    pub fn remember(&mut self, publishers: usize) {
        let Some(file) = &self.file else { return };
        match self.baseline {
            Some(good) if publishers == good => {
                self.lower_since = None;
                return;
            }
            Some(good) if publishers < good => {
                let since = *self.lower_since.get_or_insert_with(Instant::now);
                // Within 5 % a restart is not told from this one, so there is nothing to write.
                if publishers * 100 >= good * 95 || since.elapsed() < LOWERED_AFTER {
                    return;
                }
            }
            _ => {}
        }
        self.lower_since = None;
        self.baseline = Some(publishers);
        if let Err(error) = write(file, publishers) {
            tracing::warn!(file = %file.display(), %error, "the last good count is not kept");
        }
    }
}

fn read(file: &PathBuf) -> Option<usize> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the last good count cannot be read");
            return None;
        }
    };
    match serde_json::from_slice::<LastGood>(&bytes) {
        Ok(LastGood { format: 1, publishers }) => Some(publishers),
        _ => {
            tracing::warn!(file = %file.display(), "the last good count is not in format 1 and is ignored");
            None
        }
    }
}

/// Replaces the file as a whole; only its owner can read it.
fn write(file: &PathBuf, publishers: usize) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let json = serde_json::to_vec(&LastGood { format: 1, publishers })?;
    let part = file.with_extension("part");
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut open = std::fs::OpenOptions::new();
    open.write(true).create(true).truncate(true).mode(0o600).open(&part)?.write_all(&json)?;
    std::fs::rename(part, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(dir: Option<PathBuf>) -> Gate {
        let mut config = Config { state_dir: dir, ..Config::default() };
        config.protect.startup_hold = Duration::from_secs(60);
        Gate::new(&config)
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_the_hold_or_when_told() {
        let (gate, since) = (gate(None), Some(Instant::now()));
        assert!(!gate.is_open(false, since, 1_000_000));
        assert!(gate.is_open(true, since, 0));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(gate.is_open(false, since, 0));
        assert!(!gate.is_open(false, None, 0), "the hold begins when clients are let in");
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_when_nearly_all_publishers_are_back() {
        let dir = std::env::temp_dir().join(format!("mox-gate-{}", std::process::id()));
        gate(Some(dir.clone())).remember(200);
        let (restarted, since) = (gate(Some(dir.clone())), Some(Instant::now()));
        assert!(!restarted.is_open(false, since, 189));
        assert!(restarted.is_open(false, since, 190));
        let mut shrunk = gate(Some(dir.clone()));
        shrunk.remember(3);
        assert!(!gate(Some(dir.clone())).is_open(false, since, 3), "what was lost a moment ago is not good");
        tokio::time::advance(LOWERED_AFTER).await;
        let since = Some(Instant::now());
        shrunk.remember(3);
        assert!(gate(Some(dir.clone())).is_open(false, since, 3));
        std::fs::write(dir.join(FILE), "{torn").unwrap();
        assert!(!gate(Some(dir.clone())).is_open(false, since, 1_000));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
