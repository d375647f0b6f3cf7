use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::*;

/// Facts about etcd's flags: names, types, defaults, variables and keys.
const ETCD_FLAGS: &str = include_str!("../../tests/fixtures/etcd-flags.json");

/// Flags of our own, which etcd does not have.
const OWN_FLAGS: &[&str] = &[
    "storage-engine",
    "memory-budget",
    "quota-auto-disarm",
    "discovery-dns-server",
];

fn try_load(args: &[&str], variables: &[(&str, &str)]) -> Result<Invocation, Error> {
    load(
        args.iter().map(Into::into),
        variables
            .iter()
            .map(|(name, value)| (name.into(), value.into())),
    )
}

fn run(args: &[&str], variables: &[(&str, &str)]) -> (Config, Vec<Notice>) {
    match try_load(args, variables) {
        Ok(Invocation::Run { config, notices }) => (*config, notices),
        other => panic!("{args:?} {variables:?}: {other:?}"),
    }
}

fn refusal(args: &[&str], variables: &[(&str, &str)]) -> Error {
    try_load(args, variables).expect_err("settings must be refused")
}

#[test]
fn every_flag_of_etcd_is_in_the_table_with_its_default_variable_and_key() {
    let facts: Value = serde_json::from_str(ETCD_FLAGS).unwrap();
    let mut names: Vec<&str> = FLAGS.iter().map(|flag| flag.name).collect();
    for fact in facts["flags"].as_array().unwrap() {
        let name = fact["name"].as_str().unwrap();
        let flag = flags::find(name).unwrap_or_else(|| panic!("--{name} is missing"));
        assert_eq!(flag.variable(), fact["env"].as_str().unwrap());
        assert_eq!(flag.yaml, fact["yaml"].as_str(), "--{name}");
        assert_eq!(flag.is_bool(), fact["type"] == "bool", "--{name}");
        assert_eq!(flag.is_duration(), fact["type"] == "duration", "--{name}");
        let default = match &fact["default"] {
            Value::String(text) if name == "data-dir" => text.replace("${name}.etcd", ""),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        assert_eq!(flag.default, default, "--{name}");
        names.retain(|known| *known != name);
    }
    assert_eq!(names, OWN_FLAGS);
}

#[test]
fn every_removed_and_ignored_flag_of_etcd_is_answered() {
    let facts: Value = serde_json::from_str(ETCD_FLAGS).unwrap();
    for fact in facts["removed"].as_array().unwrap() {
        let name = fact["name"].as_str().unwrap();
        let args = [format!("--{name}=1")];
        let replacement = fact["replacement"].as_str().unwrap_or_default();
        match load(args.iter().map(Into::into), []) {
            // Read as its successor, or refused for the value by the successor's own rule.
            Ok(Invocation::Run { notices, .. }) => {
                let replaced = notices
                    .iter()
                    .any(|notice| matches!(notice, Notice::Replaced { old, .. } if *old == name));
                assert!(replaced, "--{name}: {notices:?}");
            }
            Err(Error::Invalid { flag, .. }) => assert_eq!(flag, replacement),
            Err(Error::Conflict(text)) => {
                assert!(text.contains("feature gate"), "--{name}: {text}")
            }
            Err(error @ Error::RemovedFlag { .. }) => {
                let text = error.to_string();
                assert!(
                    text.contains(fact["removed_in"].as_str().unwrap()),
                    "{text}"
                );
            }
            other => panic!("--{name}: {other:?}"),
        }
    }
    for name in facts["ignored"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let (_, notices) = run(&[&format!("-{name}")], &[]);
        assert_eq!(
            notices,
            [Notice::Ignored {
                flag: name.to_owned()
            }]
        );
    }
}

#[test]
fn every_feature_gate_of_etcd_exists_with_its_default() {
    let facts: Value = serde_json::from_str(ETCD_FLAGS).unwrap();
    let ours: BTreeMap<&str, Gate> = Gate::ALL
        .into_iter()
        .map(|gate| (gate.name(), gate))
        .collect();
    let gates = facts["feature_gates"].as_array().unwrap();
    assert_eq!(gates.len(), ours.len());
    for fact in gates {
        let gate = ours[fact["name"].as_str().unwrap()];
        // On here, since it costs nothing: docs/differences.md.
        let is_on = fact["default"].as_bool().unwrap() || gate == Gate::CompactHashCheck;
        assert_eq!(FeatureGates::default().enabled(gate), is_on);
        assert_eq!(
            gate.stage().label().to_lowercase(),
            fact["stage"].as_str().unwrap()
        );
    }
}

#[test]
fn no_flags_serve_localhost_from_default_etcd() {
    let (config, notices) = run(&[], &[]);
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, Path::new("default.etcd"));
    assert_eq!(config.wal_dir(), Path::new("default.etcd/member/wal"));
    assert_eq!(
        config.listen_client_urls,
        ["http://localhost:2379".parse().unwrap()]
    );
    assert_eq!(config.quota_bytes(), Some(2 << 30));
    assert_eq!(config.request_timeout(), Duration::from_secs(7));
    assert_eq!(config.watch_progress_interval(), Duration::from_secs(600));
    assert_eq!(config.grpc_receive_bytes_max(), 2 << 20);
    assert_eq!(config.memory_budget, 128 << 20);
    assert_eq!(
        config.initial_cluster,
        [(
            "default".to_owned(),
            "http://localhost:2380".parse().unwrap()
        )]
    );
    assert_eq!(notices, []);
}

#[test]
fn flags_have_go_syntax() {
    let (config, _) = run(
        &[
            "-name=a",
            "--data-dir",
            "/d",
            "-pre-vote=false",
            "--client-cert-auth=F",
            "--name",
            "b",
            "--",
        ],
        &[],
    );
    assert_eq!(config.name, "b");
    assert_eq!(config.data_dir, Path::new("/d"));
    assert!(!config.pre_vote);
    let (config, _) = run(
        &["--strict-reconfig-check", "--initial-cluster-token="],
        &[],
    );
    assert!(config.strict_reconfig_check);
    assert_eq!(config.initial_cluster_token, "");
}

#[test]
fn manifest_of_kubeadm_is_accepted() {
    let (config, notices) = run(
        &[
            "--advertise-client-urls=https://10.0.0.1:2379",
            "--cert-file=/etc/kubernetes/pki/etcd/server.crt",
            "--client-cert-auth=true",
            "--data-dir=/var/lib/etcd",
            "--feature-gates=InitialCorruptCheck=true",
            "--initial-advertise-peer-urls=https://10.0.0.1:2380",
            "--initial-cluster=node1=https://10.0.0.1:2380",
            "--key-file=/etc/kubernetes/pki/etcd/server.key",
            "--listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379",
            "--listen-metrics-urls=http://127.0.0.1:2381",
            "--listen-peer-urls=https://10.0.0.1:2380",
            "--name=node1",
            "--peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt",
            "--peer-client-cert-auth=true",
            "--peer-key-file=/etc/kubernetes/pki/etcd/peer.key",
            "--peer-trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
            "--snapshot-count=10000",
            "--trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
            "--watch-progress-notify-interval=5s",
        ],
        &[],
    );
    assert_eq!(config.watch_progress_interval(), Duration::from_secs(5));
    assert!(config.feature_gates.enabled(Gate::InitialCorruptCheck));
    assert!(config.client_tls.client_cert_auth);
    assert_eq!(
        config.listen_client_urls[1].to_string(),
        "https://127.0.0.1:2379"
    );
    assert!(notices.iter().all(
        |notice| matches!(notice, Notice::NoEffect { flag, .. } if flag.starts_with("peer-") || *flag == "listen-peer-urls")
    ));
}

#[test]
fn older_names_are_read_as_the_newer_ones() {
    let (config, notices) = run(
        &[
            "--experimental-initial-corrupt-check=true",
            "--experimental-watch-progress-notify-interval",
            "5s",
        ],
        &[("ETCD_EXPERIMENTAL_COMPACTION_BATCH_LIMIT", "7")],
    );
    assert!(config.feature_gates.enabled(Gate::InitialCorruptCheck));
    assert_eq!(config.watch_progress_interval(), Duration::from_secs(5));
    assert_eq!(config.compaction_batch_limit, 7);
    assert_eq!(notices.len(), 3);
    let (config, notices) = run(
        &[
            "--experimental-initial-corrupt-check",
            "--feature-gates=InitialCorruptCheck=false",
            "--compaction-batch-limit=3",
        ],
        &[("ETCD_EXPERIMENTAL_COMPACTION_BATCH_LIMIT", "7")],
    );
    assert!(!config.feature_gates.enabled(Gate::InitialCorruptCheck));
    assert_eq!(config.compaction_batch_limit, 3);
    assert!(notices.contains(&Notice::OldNameIgnored {
        old: "experimental-compaction-batch-limit",
        new: "compaction-batch-limit"
    }));
}

#[test]
fn environment_of_kubespray_is_accepted() {
    let (config, notices) = run(
        &[],
        &[
            ("ETCD_NAME", "etcd1"),
            ("ETCD_HEARTBEAT_INTERVAL", "250"),
            ("ETCD_ELECTION_TIMEOUT", "5000"),
            ("ETCD_METRICS", "basic"),
            ("ETCD_PROXY", "off"),
            ("ETCD_LOG_PACKAGE_LEVELS", ""),
            ("ETCD_DEBUG", "false"),
            ("ETCD_UNSUPPORTED_ARCH", "arm64"),
            ("ETCD_AUTO_COMPACTION_RETENTION", "8"),
            ("ETCD_LISTEN_CLIENT_URLS", "http://10.0.0.1:2379"),
            ("ETCD_ADVERTISE_CLIENT_URLS", "http://10.0.0.1:2379"),
            ("ETCD_VERSION", "v3.5.0"),
            ("ETCD_TYPO", "1"),
            ("PATH", "/bin"),
        ],
    );
    assert_eq!(config.election_timeout, Duration::from_secs(5));
    assert_eq!(
        config.auto_compaction().unwrap(),
        Some(AutoCompaction::Periodic(Duration::from_secs(8 * 3_600)))
    );
    let texts: Vec<String> = notices.iter().map(Notice::to_string).collect();
    assert_eq!(texts.len(), 4, "{texts:?}");
    for variable in ["ETCD_PROXY", "ETCD_DEBUG", "ETCD_VERSION", "ETCD_TYPO"] {
        assert!(
            texts.iter().any(|text| text.contains(variable)),
            "{variable}: {texts:?}"
        );
    }
}

#[test]
fn flag_beside_its_variable_is_refused() {
    let error = refusal(&["--name=a"], &[("ETCD_NAME", "a")]);
    assert!(
        error.to_string().contains("\"ETCD_NAME\" is shadowed"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn config_file_replaces_flags_and_variables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("etcd.yaml");
    std::fs::write(
        &path,
        "name: from-file\nlisten-client-urls: http://127.0.0.1:3379\n",
    )
    .unwrap();
    let file = path.to_str().unwrap();
    for (args, variables) in [
        (
            vec!["--config-file", file, "--name=from-flag"],
            vec![("ETCD_NAME", "from-env")],
        ),
        (
            vec![],
            vec![("ETCD_CONFIG_FILE", file), ("ETCD_SNAPSHOT_COUNT", "7")],
        ),
    ] {
        let (config, notices) = run(&args, &variables);
        assert_eq!(config.name, "from-file");
        assert_eq!(config.snapshot_count, 10_000);
        assert_eq!(
            config.advertise_client_urls,
            ["http://localhost:2379".parse().unwrap()]
        );
        assert_eq!(
            notices,
            [Notice::FileOnly {
                path: file.to_owned()
            }]
        );
    }
}

#[test]
fn bad_command_lines_are_refused_with_the_way_out() {
    let check = |args: &[&str], code: u8, words: &str| {
        let error = refusal(args, &[]);
        let text = error.to_string();
        assert!(text.contains(words), "{args:?}: {text}");
        assert_eq!(error.exit_code(), code, "{text}");
    };
    check(
        &["--lisen-client-urls=x"],
        2,
        "flag provided but not defined: -lisen-client-urls; did you mean --listen-client-urls?",
    );
    check(&["--zzzzzzzzz"], 2, "kvd --help");
    check(&["--name"], 2, "flag needs an argument: -name");
    check(
        &["--snapshot-count=many"],
        2,
        "invalid value \"many\" for flag --snapshot-count",
    );
    check(
        &["--snapshot-count=many", "--snapshot-count=1"],
        2,
        "invalid value \"many\"",
    );
    check(
        &["--max-concurrent-streams=4294967296"],
        2,
        "the largest value is 4294967295",
    );
    check(
        &["--ca-file=/x"],
        2,
        "--trusted-ca-file and --client-cert-auth",
    );
    check(&["--debug"], 2, "--log-level=debug");
    check(&["--enable-v2"], 2, "was removed in etcd 3.6");
    check(&["--logger=capnslog"], 2, "expected one of zap");
    check(&["--storage-engine=bbolt"], 2, "redb, sled");
    check(
        &["--feature-gates=Nope=true"],
        2,
        "unknown feature gate Nope",
    );
    check(
        &["--listen-client-urls=127.0.0.1:2379"],
        2,
        "begins with http://",
    );
    check(&["gateway", "start"], 1, "\"gateway\" is not a valid flag");
    check(&["--pre-vote", "false"], 1, "\"false\" is not a valid flag");
    check(&["-"], 1, "\"-\" is not a valid flag");
    check(&["--", "x"], 1, "\"x\" is not a valid flag");
}

#[test]
fn contradictions_are_refused_with_the_flag_and_the_fix() {
    let check = |args: &[&str], words: &str| {
        let error = refusal(args, &[]);
        assert!(
            matches!(error, Error::Conflict(_) | Error::Invalid { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(words), "{args:?}: {error}");
    };
    check(
        &["--heartbeat-interval=0"],
        "--heartbeat-interval must be >0",
    );
    check(
        &["--election-timeout=499"],
        "--election-timeout[499ms] should be at least as 5 times as --heartbeat-interval[100ms]",
    );
    check(
        &["--election-timeout=50001"],
        "should be set less than 50000ms",
    );
    check(
        &["--compact-hash-check-time=0s"],
        "--compact-hash-check-time must be >0",
    );
    check(
        &["--listen-client-urls=http://127.0.0.1:1"],
        "--advertise-client-urls is required when --listen-client-urls is set explicitly",
    );
    check(
        &[
            "--listen-client-urls=",
            "--advertise-client-urls=http://a:1",
        ],
        "--listen-client-urls is empty",
    );
    check(
        &["--listen-peer-urls=http://example.com:1"],
        "expected IP in URL for binding (http://example.com:1)",
    );
    check(
        &["--advertise-client-urls=http://:1"],
        "unexpected empty host",
    );
    check(
        &["--listen-metrics-urls=https://127.0.0.1:1"],
        "--cert-file and --key-file",
    );
    check(
        &["--cert-file=/c"],
        "--cert-file is given without --key-file",
    );
    check(
        &["--peer-key-file=/c"],
        "--peer-key-file is given without --peer-cert-file",
    );
    check(&["--client-cert-auth"], "--trusted-ca-file");
    check(
        &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
        "--tls-max-version",
    );
    check(
        &["--tls-min-version=TLS1.3", "--cipher-suites=X"],
        "--cipher-suites cannot be configured",
    );
    check(
        &["--feature-gates=LeaseCheckpointPersist=true"],
        "requires enabling feature gate LeaseCheckpoint",
    );
    check(&["--discovery-endpoints=http://a:1"], "--discovery-token");
    check(&["--discovery-token=t"], "--discovery-endpoints");
    check(
        &["--initial-cluster=a=http://a:1", "--discovery-srv=x"],
        "multiple discovery or bootstrap flags",
    );
    check(
        &["--auto-compaction-retention=soon"],
        "a duration such as 30m",
    );
    check(
        &[
            "--auto-compaction-mode=revision",
            "--auto-compaction-retention=1h",
        ],
        "a number of revisions",
    );
    check(&["--memory-budget=1MiB"], "at least 16 MiB");
    check(&["--bcrypt-cost=3"], "4 to 31");
    check(&["--name="], "--name must not be empty");
    check(&["--initial-cluster=http://a:1"], "name=peer-url");
}

#[test]
fn unwise_and_ineffective_settings_are_told() {
    let (_, notices) = run(
        &[
            "--max-request-bytes=20000000",
            "--quota-backend-bytes=9000000000",
            "--max-snapshots=5",
            "--unsafe-no-fsync",
        ],
        &[],
    );
    let texts = notices
        .iter()
        .map(Notice::to_string)
        .collect::<Vec<_>>()
        .join("\n");
    for words in [
        "--max-request-bytes:",
        "--quota-backend-bytes:",
        "--max-snapshots is deprecated",
        "--unsafe-no-fsync is accepted",
    ] {
        assert!(texts.contains(words), "{texts}");
    }
    assert_eq!(notices.len(), 4);
    let (config, _) = run(&["--quota-backend-bytes=-1"], &[]);
    assert_eq!(config.quota_bytes(), None);
}

#[test]
fn retention_is_read_by_its_mode() {
    let check = |args: &[&str], expect: Option<AutoCompaction>| {
        assert_eq!(
            run(args, &[]).0.auto_compaction().unwrap(),
            expect,
            "{args:?}"
        );
    };
    check(&[], None);
    check(&["--auto-compaction-retention=0s"], None);
    check(
        &["--auto-compaction-retention=1"],
        Some(AutoCompaction::Periodic(Duration::from_secs(3_600))),
    );
    check(
        &["--auto-compaction-retention=5m"],
        Some(AutoCompaction::Periodic(Duration::from_secs(300))),
    );
    check(
        &[
            "--auto-compaction-mode=revision",
            "--auto-compaction-retention=1000",
        ],
        Some(AutoCompaction::Revision(1_000)),
    );
    check(&["--auto-compaction-mode=revision"], None);
}

#[test]
fn initial_cluster_repeats_names_and_follows_the_name() {
    let (config, _) = run(
        &[
            "--name=a",
            "--initial-cluster=a=http://a:1,b=http://b:1,a=http://a:2",
        ],
        &[],
    );
    let names: Vec<&str> = config
        .initial_cluster
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["a", "b", "a"]);
    let (config, _) = run(
        &["--name=a", "--initial-advertise-peer-urls=http://a:1"],
        &[],
    );
    assert_eq!(
        config.initial_cluster,
        [("a".to_owned(), "http://a:1".parse().unwrap())]
    );
}

#[test]
fn version_has_etcd_s_four_lines() {
    assert!(matches!(
        try_load(&["--version"], &[]),
        Ok(Invocation::Version)
    ));
    let text = version_text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "etcd Version: 3.7.1");
    for (line, start) in lines.iter().zip([
        "etcd Version: ",
        "Git SHA: ",
        "Go Version: ",
        "Go OS/Arch: ",
        "kvd Version: ",
    ]) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn help_lists_every_flag() {
    for args in [["-h"], ["--help"]] {
        assert!(matches!(try_load(&args, &[]), Ok(Invocation::Help)));
    }
    let text = help_text();
    for flag in FLAGS {
        assert!(
            text.contains(&format!("\n  --{} ", flag.name)),
            "--{}",
            flag.name
        );
    }
}
