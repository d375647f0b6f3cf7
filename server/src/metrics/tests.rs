use std::collections::BTreeMap;

use serde_json::Value;

use super::*;

/// Facts about etcd's metrics: names, types, labels, buckets.
const ETCD_METRICS: &str = include_str!("../../tests/fixtures/etcd-metrics.json");

/// Metrics of etcd that are not declared, with the reason. A name ending in `*` stands for all that begin so.
const ABSENT: &[(&str, &str)] = &[
    ("go_*", "never: there is no Go runtime"),
    ("etcd_server_go_version", "never: there is no Go runtime"),
    (
        "etcd_debugging_store_*",
        "never: the v2 store does not exist here",
    ),
    (
        "etcd_debugging_disk_backend_commit_*",
        "never: phases of a commit of bbolt",
    ),
    (
        "etcd_debugging_snap_save_*",
        "never: Raft snapshots are not files of their own",
    ),
    (
        "etcd_snap_*",
        "not yet: snapshots come with the second member",
    ),
];

fn extensive() -> Config {
    Config {
        metrics: MetricsLevel::Extensive,
        ..Config::default()
    }
}

fn is_absent(name: &str) -> bool {
    ABSENT
        .iter()
        .any(|(pattern, _)| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == *pattern,
        })
}

#[test]
fn declared_metrics_are_etcd_s() {
    let facts: Value = serde_json::from_str(ETCD_METRICS).unwrap();
    let (_, rows) = Metrics::declare(&extensive());
    let mut ours: BTreeMap<&str, (&str, Spec)> = rows
        .into_iter()
        .map(|(kind, spec)| (spec.name, (kind, spec)))
        .collect();
    for fact in facts["metrics"].as_array().unwrap() {
        let name = fact["name"].as_str().unwrap();
        let Some((kind, spec)) = ours.remove(name) else {
            assert!(
                is_absent(name),
                "{name} is neither declared nor listed as absent"
            );
            continue;
        };
        assert!(!is_absent(name), "{name} is declared and listed as absent");
        assert_eq!(kind, fact["type"].as_str().unwrap(), "{name}");
        let labels: Vec<&str> = fact["labels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|label| label.as_str().unwrap())
            .collect();
        assert_eq!(spec.labels, labels, "{name}");
        match (&fact["buckets"], spec.buckets) {
            (Value::Null, None) => {}
            (fact, None) => {
                let bounds: Vec<f64> = fact["bounds"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|bound| bound.as_f64().unwrap())
                    .collect();
                assert_eq!(bounds, prometheus::DEFAULT_BUCKETS, "{name}");
            }
            (
                fact,
                Some(Buckets {
                    start,
                    factor,
                    count,
                }),
            ) => {
                assert_eq!(
                    (fact["start"].as_f64(), fact["factor"].as_f64()),
                    (Some(start), Some(factor)),
                    "{name}"
                );
                assert_eq!(fact["count"].as_u64(), Some(count as u64), "{name}");
            }
        }
    }
    let own: Vec<&str> = ours.into_keys().collect();
    assert!(
        own.iter().all(|name| name.starts_with("kvd_")),
        "not etcd's: {own:?}"
    );
}

#[test]
fn page_shows_unlabelled_metrics_from_the_start() {
    let (_, rows) = Metrics::declare(&extensive());
    let metrics = Metrics::new(&extensive());
    let page = String::from_utf8(metrics.text()).unwrap();
    for (kind, spec) in rows.iter().filter(|(_, spec)| spec.labels.is_empty()) {
        assert!(
            page.contains(&format!("# TYPE {} {kind}\n", spec.name)),
            "{}",
            spec.name
        );
    }
    assert!(page.contains("etcd_server_version{server_version=\"3.7.1\"} 1\n"));
    assert!(
        page.contains(
            "etcd_server_feature_enabled{name=\"FastLeaseKeepAlive\",stage=\"BETA\"} 1\n"
        )
    );
    assert!(page.contains("etcd_server_quota_backend_bytes 2147483648\n"));
    assert!(page.contains("etcd_disk_wal_fsync_duration_seconds_bucket{le=\"8.192\"} 0\n"));
}

#[test]
fn every_method_is_shown_before_its_first_call() {
    let metrics = Metrics::new(&extensive());
    let page = String::from_utf8(metrics.text()).unwrap();
    assert!(page.contains(
        "grpc_server_handled_total{grpc_code=\"Unavailable\",grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 0\n"
    ));
    let method = metrics.grpc.method("/etcdserverpb.Watch/Watch").unwrap();
    method.start();
    method.finish(1, std::time::Duration::from_millis(3));
    method.finish(99, std::time::Duration::ZERO);
    let page = String::from_utf8(metrics.text()).unwrap();
    let labels =
        "grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"";
    for line in [
        format!("grpc_server_started_total{{{labels}}} 1\n"),
        format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{labels}}} 1\n"),
        format!("grpc_server_handled_total{{grpc_code=\"Unknown\",{labels}}} 1\n"),
        format!("grpc_server_handling_seconds_count{{{labels}}} 2\n"),
    ] {
        assert!(page.contains(&line), "{line}");
    }
    assert!(metrics.grpc.method("/etcdserverpb.KV/Nope").is_none());
}

#[test]
fn durations_of_calls_are_extensive_only() {
    let metrics = Metrics::new(&Config::default());
    metrics
        .grpc
        .method("/etcdserverpb.KV/Range")
        .unwrap()
        .finish(0, std::time::Duration::ZERO);
    let page = String::from_utf8(metrics.text()).unwrap();
    assert!(!page.contains("grpc_server_handling_seconds"));
}

#[test]
fn every_method_of_the_services_is_counted() {
    use prost::Message;
    let metrics = Metrics::new(&extensive());
    let descriptors = prost_types::FileDescriptorSet::decode(kv_proto::DESCRIPTORS).unwrap();
    let mut seen = 0;
    let is_for_clients = |package: &str| package != "kvd.peer";
    let files = descriptors.file.iter();
    for file in files.filter(|file| is_for_clients(file.package())) {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let counted = metrics
                    .grpc
                    .method(&path)
                    .unwrap_or_else(|| panic!("{path} is not counted"));
                assert_eq!(
                    counted.is_unary,
                    !method.client_streaming() && !method.server_streaming(),
                    "{path}"
                );
                seen += 1;
            }
        }
    }
    assert_eq!(seen, metrics.grpc.len());
}
