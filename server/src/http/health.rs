//! `/health`, `/livez` and `/readyz`.
//!
//! `/health` answers one JSON object: false with an alarm, without a leader, or when a read fails. `/livez` and `/readyz` run
//! named checks and answer `ok`, or a line for each check when asked for or when one failed; `exclude=<name>` leaves one
//! out, `/readyz/<name>` runs only that one. A full disk (NOSPACE) fails neither of the two.

use http::{StatusCode, Uri};
use kv_proto::etcdserverpb::AlarmType;

use super::{Answer, HealthSource, Pages, parameters, text, typed};

/// One named check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }
}

/// A probe with its checks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    label: &'static str,
    checks: &'static [Check],
}

/// Whether the process should be left running.
pub(super) const LIVEZ: Probe = Probe {
    label: "livez",
    checks: &[Check::SerializableRead],
};

/// Whether clients should be sent here.
pub(super) const READYZ: Probe = Probe {
    label: "readyz",
    checks: &[
        Check::DataCorruption,
        Check::SerializableRead,
        Check::LinearizableRead,
        Check::NonLearner,
    ],
};

impl Probe {
    pub(super) fn find(self, name: &str) -> Option<Check> {
        self.checks
            .iter()
            .copied()
            .find(|check| check.name() == name)
    }
}

impl<S: HealthSource> Pages<S> {
    pub(super) async fn health_page(&self, uri: &Uri) -> Answer {
        let parameters = parameters(uri);
        let excluded: Vec<&str> = parameters
            .iter()
            .filter(|(name, _)| name == "exclude")
            .map(|(_, value)| value.as_str())
            .collect();
        // The first value of a parameter counts.
        let serializable = parameters.iter().find(|(name, _)| name == "serializable");
        let serializable = serializable.is_some_and(|(_, value)| value == "true");
        match self.health(&excluded, serializable).await {
            Ok(()) => {
                self.metrics.server.health_success.inc();
                typed("text/plain; charset=utf-8", health_body("true", ""))
            }
            Err(reason) => {
                self.metrics.server.health_failures.inc();
                tracing::warn!(%reason, "/health is false");
                text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    health_body("false", &reason) + "\n",
                )
            }
        }
    }

    async fn health(&self, excluded: &[&str], serializable: bool) -> Result<(), String> {
        for alarm in self.source.alarms() {
            let name = match alarm {
                AlarmType::None => continue,
                AlarmType::Nospace => "NOSPACE",
                AlarmType::Corrupt => "CORRUPT",
            };
            if !excluded.contains(&name) {
                return Err(format!("ALARM {name}"));
            }
        }
        let read = if serializable {
            self.source.serializable_read().await
        } else if self.source.has_leader() {
            self.source.linearizable_read().await
        } else {
            return Err("RAFT NO LEADER".to_owned());
        };
        read.map_err(|error| format!("RANGE ERROR:{error}"))
    }

    /// Runs the checks of a probe that are not excluded.
    pub(super) async fn check_page(&self, probe: Probe, uri: &Uri) -> Answer {
        let parameters = parameters(uri);
        let is_excluded = |check: &Check| {
            parameters
                .iter()
                .any(|(name, value)| name == "exclude" && value == check.name())
        };
        let checks: Vec<Check> = probe
            .checks
            .iter()
            .copied()
            .filter(|check| !is_excluded(check))
            .collect();
        self.run_checks(probe, &checks, is_verbose(&parameters))
            .await
    }

    /// Runs one check by name; nothing can be excluded.
    pub(super) async fn one_check_page(&self, probe: Probe, check: Check, uri: &Uri) -> Answer {
        self.run_checks(probe, &[check], is_verbose(&parameters(uri)))
            .await
    }

    async fn run_checks(&self, probe: Probe, checks: &[Check], verbose: bool) -> Answer {
        let mut lines = String::new();
        let mut failed = Vec::new();
        for check in checks {
            let result = self.run_check(*check).await;
            let name = check.name();
            let (state, status) = if result.is_ok() {
                (1, "success")
            } else {
                (0, "error")
            };
            let server = &self.metrics.server;
            server
                .healthcheck
                .with_label_values(&[probe.label, name])
                .set(state);
            server
                .healthchecks
                .with_label_values(&[probe.label, name, status])
                .inc();
            match result {
                Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
                Err(why) => {
                    lines.push_str(&format!("[-]{name} failed: {why}\n"));
                    failed.push(name);
                }
            }
        }
        if !failed.is_empty() {
            tracing::warn!(probe = probe.label, failed = %failed.join(","), "health check failed");
            return text(StatusCode::SERVICE_UNAVAILABLE, lines + "\n");
        }
        text(
            StatusCode::OK,
            if verbose {
                lines + "ok\n"
            } else {
                "ok\n".to_owned()
            },
        )
    }

    async fn run_check(&self, check: Check) -> Result<(), String> {
        match check {
            Check::DataCorruption if self.source.alarms().contains(&AlarmType::Corrupt) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            Check::DataCorruption => Ok(()),
            Check::SerializableRead => self.source.serializable_read().await,
            Check::LinearizableRead => self.source.linearizable_read().await,
            Check::NonLearner if self.source.is_learner() => {
                Err("not supported for learner".to_owned())
            }
            Check::NonLearner => Ok(()),
        }
    }
}

fn is_verbose(parameters: &[(String, String)]) -> bool {
    parameters.iter().any(|(name, _)| name == "verbose")
}

/// etcd's object: the truth is a text, not a boolean.
fn health_body(health: &str, reason: &str) -> String {
    let reason = serde_json::Value::from(reason);
    format!("{{\"health\":\"{health}\",\"reason\":{reason}}}")
}
