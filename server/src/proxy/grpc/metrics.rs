//! The proxy's own metrics, under etcd's names.

use prometheus::{Gauge, IntCounter, IntGauge, Opts, Registry};

/// Counters and gauges of a proxy.
pub(super) struct Metrics {
    registry: Registry,
    /// Watchers beside the first of each shared watch.
    pub(super) watchers_coalescing: IntGauge,
    /// Events that were received once and sent more than once, counted beside the first.
    pub(super) events_coalescing: IntCounter,
    pub(super) cache_keys: IntGauge,
    /// Gauges that only rise, as etcd's are.
    pub(super) cache_hits: Gauge,
    pub(super) cache_misses: Gauge,
}

impl Metrics {
    pub(super) fn new() -> Metrics {
        let registry = Registry::new();
        macro_rules! metric {
            ($kind:ident, $name:literal, $help:literal) => {{
                let metric = $kind::with_opts(Opts::new($name, $help))
                    .expect("the name is one of Prometheus");
                registry
                    .register(Box::new(metric.clone()))
                    .expect("no name is there twice");
                metric
            }};
        }
        Metrics {
            watchers_coalescing: metric!(
                IntGauge,
                "etcd_grpc_proxy_watchers_coalescing_total",
                "Total number of current watchers coalescing"
            ),
            events_coalescing: metric!(
                IntCounter,
                "etcd_grpc_proxy_events_coalescing_total",
                "Total number of events coalescing"
            ),
            cache_keys: metric!(
                IntGauge,
                "etcd_grpc_proxy_cache_keys_total",
                "Total number of keys/ranges cached"
            ),
            cache_hits: metric!(
                Gauge,
                "etcd_grpc_proxy_cache_hits_total",
                "Total number of cache hits"
            ),
            cache_misses: metric!(
                Gauge,
                "etcd_grpc_proxy_cache_misses_total",
                "Total number of cache misses"
            ),
            registry,
        }
    }

    /// All of them in Prometheus' text form.
    pub(super) fn text(&self) -> String {
        prometheus::TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("metrics have a text form")
    }
}
