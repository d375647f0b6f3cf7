//! The rules that settings must keep among each other, checked once before any file is touched.
//!
//! Each message names the flag and the way out. What only hurts is a [`Notice`].
//! Source: etcd 3.7 server/embed `Config.Validate`.

use std::time::Duration;

use super::gates::Gate;
use super::notice::Notice;
use super::url::Url;
use super::{Config, Error, TlsFiles, TlsVersion};
use crate::auth::TokenKind;

/// Longest election timeout: a cluster that waits longer is as good as down.
const ELECTION_TIMEOUT_MAX: Duration = Duration::from_secs(50);
/// Largest request that earns no warning.
const REQUEST_BYTES_ADVISED_MAX: u64 = 10 << 20;
/// Largest quota that earns no warning.
const QUOTA_BYTES_ADVISED_MAX: u64 = 8 << 30;
/// Smallest memory budget: each of its parts still holds the largest request of default size.
const MEMORY_BUDGET_MIN: u64 = 16 << 20;

impl Config {
    /// Checks every rule; adds to `notices` what works and is likely to hurt.
    pub(super) fn validate(&self, notices: &mut Vec<Notice>) -> Result<(), Error> {
        self.validate_timers()?;
        self.validate_urls()?;
        self.validate_cluster()?;
        self.validate_tls(notices)?;
        self.validate_limits(notices)?;
        self.auto_compaction()?;
        Ok(())
    }

    fn validate_timers(&self) -> Result<(), Error> {
        let (heartbeat, election) = (self.heartbeat_interval, self.election_timeout);
        let (heartbeat_ms, election_ms) = (heartbeat.as_millis(), election.as_millis());
        if heartbeat.is_zero() {
            return conflict("--heartbeat-interval must be >0 (set to 0ms); its default is 100");
        }
        if election.is_zero() {
            return conflict("--election-timeout must be >0 (set to 0ms); its default is 1000");
        }
        if 5 * heartbeat > election {
            return conflict(format!(
                "--election-timeout[{election_ms}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat_ms}ms]; \
                 raise the timeout to {}",
                5 * heartbeat_ms
            ));
        }
        if election > ELECTION_TIMEOUT_MAX {
            let max_ms = ELECTION_TIMEOUT_MAX.as_millis();
            return conflict(format!(
                "--election-timeout[{election_ms}ms] is too long, and should be set less than {max_ms}ms"
            ));
        }
        if self.compact_hash_check_time.is_zero() {
            return conflict("--compact-hash-check-time must be >0 (set to 0s); its default is 1m");
        }
        Ok(())
    }

    fn validate_urls(&self) -> Result<(), Error> {
        let listeners = [
            ("listen-peer-urls", &self.listen_peer_urls),
            ("listen-client-urls", &self.listen_client_urls),
            ("listen-client-http-urls", &self.listen_client_http_urls),
            ("listen-metrics-urls", &self.listen_metrics_urls),
        ];
        for (flag, urls) in listeners {
            if let Some(url) = urls.iter().find(|url| !url.is_bindable()) {
                return conflict(format!(
                    "--{flag}: expected IP in URL for binding ({url}); use an IP address or localhost"
                ));
            }
        }
        if self.listen_client_urls.is_empty() {
            return conflict(
                "--listen-client-urls is empty; name at least one URL, such as http://127.0.0.1:2379",
            );
        }
        let advertised = [
            (
                "initial-advertise-peer-urls",
                &self.initial_advertise_peer_urls,
            ),
            ("advertise-client-urls", &self.advertise_client_urls),
        ];
        for (flag, urls) in advertised {
            let hostless = |url: &&Url| url.host_port().is_some_and(|(host, _)| host.is_empty());
            if let Some(url) = urls.iter().find(hostless) {
                return conflict(format!(
                    "--{flag}: unexpected empty host ({url}); write the address that others reach"
                ));
            }
        }
        if self.advertise_client_urls.is_empty() {
            return conflict(
                "--advertise-client-urls is required when --listen-client-urls is set explicitly; \
                 add --advertise-client-urls with the URLs that clients reach",
            );
        }
        Ok(())
    }

    fn validate_cluster(&self) -> Result<(), Error> {
        let ways = ["initial-cluster", "discovery-endpoints", "discovery-srv"];
        let given: Vec<&str> = ways
            .into_iter()
            .filter(|flag| self.is_given(flag))
            .collect();
        if given.len() > 1 {
            return conflict(format!(
                "multiple discovery or bootstrap flags are set (--{}); choose one of \
                 \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\"",
                given.join(", --")
            ));
        }
        if self.name.is_empty() {
            return conflict("--name must not be empty; its default is default");
        }
        let persist = self.feature_gates.enabled(Gate::LeaseCheckpointPersist);
        if persist && !self.feature_gates.enabled(Gate::LeaseCheckpoint) {
            return conflict(
                "--feature-gates: enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
            );
        }
        Ok(())
    }

    fn validate_tls(&self, notices: &mut Vec<Notice>) -> Result<(), Error> {
        if (self.tls_min_version, self.tls_max_version)
            == (TlsVersion::Tls13, Some(TlsVersion::Tls12))
        {
            return conflict(
                "--tls-min-version=TLS1.3 is above --tls-max-version=TLS1.2; lower the one or raise the other",
            );
        }
        if self.tls_min_version == TlsVersion::Tls13 && !self.cipher_suites.is_empty() {
            return conflict(
                "--cipher-suites cannot be configured when only TLS1.3 is enabled (--tls-min-version); remove one of the two",
            );
        }
        check_key_pair("", &self.client_tls)?;
        check_key_pair("peer-", &self.peer_tls)?;
        let has_certificate = self.client_tls.cert_file.is_some() || self.client_tls.auto_tls;
        let listeners = [
            ("listen-client-urls", &self.listen_client_urls),
            ("listen-client-http-urls", &self.listen_client_http_urls),
            ("listen-metrics-urls", &self.listen_metrics_urls),
        ];
        for (flag, urls) in listeners {
            if let Some(url) = urls
                .iter()
                .find(|url| url.scheme.is_tls() && !has_certificate)
            {
                return conflict(format!(
                    "--{flag}: cannot listen on TLS for {url}: KeyFile and CertFile are not presented; \
                     give --cert-file and --key-file, or --auto-tls"
                ));
            }
            let plain = urls.iter().find(|url| !url.scheme.is_tls());
            // Plain metrics beside TLS clients are usual: probes have no certificate.
            if let (Some(url), true, false) = (
                plain,
                self.client_tls.cert_file.is_some(),
                flag == "listen-metrics-urls",
            ) {
                let why =
                    format!("{url} is not encrypted although --cert-file and --key-file are given");
                notices.push(Notice::Unwise { flag, why });
            }
        }
        Ok(())
    }

    fn validate_limits(&self, notices: &mut Vec<Notice>) -> Result<(), Error> {
        if self.memory_budget < MEMORY_BUDGET_MIN {
            return conflict(format!(
                "--memory-budget={} is too small; give at least {} MiB",
                self.memory_budget,
                MEMORY_BUDGET_MIN >> 20
            ));
        }
        if self.max_request_bytes > u64::from(u32::MAX) - (1 << 20) {
            return conflict("--max-request-bytes must be below 4 GiB, the largest gRPC message");
        }
        if let Err(error) = TokenKind::parse(&self.auth_token) {
            return conflict(format!("--auth-token: {error}"));
        }
        if !(4..=31).contains(&self.bcrypt_cost) {
            return conflict(format!(
                "--bcrypt-cost={} is out of range; give 4 to 31",
                self.bcrypt_cost
            ));
        }
        if self.max_request_bytes > REQUEST_BYTES_ADVISED_MAX {
            let why = format!(
                "requests over {REQUEST_BYTES_ADVISED_MAX} bytes delay heartbeats and other requests"
            );
            notices.push(Notice::Unwise {
                flag: "max-request-bytes",
                why,
            });
        }
        if self
            .quota_bytes()
            .is_some_and(|quota| quota > QUOTA_BYTES_ADVISED_MAX)
        {
            let why = format!(
                "the suggested maximum is {QUOTA_BYTES_ADVISED_MAX} bytes; larger ones slow recovery"
            );
            notices.push(Notice::Unwise {
                flag: "quota-backend-bytes",
                why,
            });
        }
        if self.quota_bytes().is_none() {
            let why = "no quota: a full disk is then found by failing writes".to_owned();
            notices.push(Notice::Unwise {
                flag: "quota-backend-bytes",
                why,
            });
        }
        Ok(())
    }
}

/// Certificate and key come together, and verification needs an authority and a certificate of its own.
fn check_key_pair(prefix: &str, tls: &TlsFiles) -> Result<(), Error> {
    let pairs = [
        ("cert-file", &tls.cert_file, "key-file", &tls.key_file),
        (
            "client-cert-file",
            &tls.client_cert_file,
            "client-key-file",
            &tls.client_key_file,
        ),
    ];
    for (cert_flag, cert, key_flag, key) in pairs {
        let (given, missing) = match (cert, key) {
            (Some(_), None) => (cert_flag, key_flag),
            (None, Some(_)) => (key_flag, cert_flag),
            _ => continue,
        };
        return conflict(format!(
            "--{prefix}{given} is given without --{prefix}{missing}; give both or neither"
        ));
    }
    if tls.client_cert_auth && tls.trusted_ca_file.is_none() {
        return conflict(format!(
            "--{prefix}client-cert-auth needs --{prefix}trusted-ca-file: the authorities that signed the certificates"
        ));
    }
    Ok(())
}

fn conflict(text: impl Into<String>) -> Result<(), Error> {
    Err(Error::Conflict(text.into()))
}
