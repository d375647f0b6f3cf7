//! What a member tells about itself on `/metrics`.
//!
//! Names, types, labels and bucket bounds are etcd's, so dashboards and alerts need no change; `table.rs` declares each once
//! and a test compares them with etcd's list. Families with labels appear with their first value, as in etcd; everything
//! else is there from the start. Counters and histograms are atomics: counting costs a few nanoseconds and never waits.
//! Labelled ones look their child up under a lock; on a hot path keep the child (`with_label_values` returns a handle).

mod grpc;
mod process;
mod table;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec,
};
use prometheus::{Opts, Registry, TextEncoder};

pub use self::grpc::{CODES, GrpcMetrics, MethodMetrics};
pub use self::process::ProcessMetrics;
pub use self::table::{
    DebuggingMetrics, DiskMetrics, HttpMetrics, MvccMetrics, NetworkMetrics, OwnMetrics,
    ServerMetrics,
};
use crate::config::{Config, ETCD_VERSION, MetricsLevel};

/// Every metric of a member. Clone a handle (each metric is one) to keep it elsewhere.
pub struct Metrics {
    /// `etcd_server_*` and `etcd_cluster_*`: Raft, proposals, applies, requests, health.
    pub server: ServerMetrics,
    /// `etcd_debugging_*`: revisions, watchers, leases, compaction.
    pub debugging: DebuggingMetrics,
    /// `etcd_disk_*`: log and engine.
    pub disk: DiskMetrics,
    /// `etcd_mvcc_*`: operations and sizes.
    pub mvcc: MvccMetrics,
    /// `etcd_network_*`: bytes and failed streams.
    pub network: NetworkMetrics,
    /// `promhttp_*`: scrapes of this page.
    pub http: HttpMetrics,
    /// `kvd_*`: what etcd has no name for.
    pub own: OwnMetrics,
    /// `grpc_server_*`: calls by method.
    pub grpc: GrpcMetrics,
    /// `process_*` and `os_fd_*`, read when the page is.
    process: ProcessMetrics,
    registry: Registry,
}

impl Metrics {
    /// Declares all metrics and sets those that the settings decide.
    pub fn new(config: &Config) -> Metrics {
        let metrics = Metrics::declare(config).0;
        metrics
            .server
            .version
            .with_label_values(&[ETCD_VERSION])
            .set(1);
        for (name, stage, enabled) in config.feature_gates.switches() {
            let gauge = metrics
                .server
                .feature_enabled
                .with_label_values(&[name, stage.label()]);
            gauge.set(i64::from(enabled));
        }
        let quota = config.quota_bytes().unwrap_or(0);
        metrics
            .server
            .quota_backend_bytes
            .set(i64::try_from(quota).unwrap_or(i64::MAX));
        metrics
            .own
            .memory_budget_bytes
            .set(i64::try_from(config.memory_budget).unwrap_or(i64::MAX));
        metrics
    }

    /// The page in Prometheus' text format 0.0.4, families sorted by name. Reads `/proc`: run it where that may take a moment.
    pub fn text(&self) -> Vec<u8> {
        self.process.refresh();
        let mut page = Vec::with_capacity(256 * 1024);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut page) {
            tracing::error!(%error, "cannot write the metrics page");
        }
        page
    }

    /// Declares all metrics; also returns type and row of each.
    fn declare(config: &Config) -> (Metrics, Vec<(&'static str, Spec)>) {
        let mut declared = Declared::default();
        let metrics = Metrics {
            server: ServerMetrics::declare(&mut declared),
            debugging: DebuggingMetrics::declare(&mut declared),
            disk: DiskMetrics::declare(&mut declared),
            mvcc: MvccMetrics::declare(&mut declared),
            network: NetworkMetrics::declare(&mut declared),
            http: HttpMetrics::declare(&mut declared),
            own: OwnMetrics::declare(&mut declared),
            grpc: GrpcMetrics::declare(&mut declared, config.metrics == MetricsLevel::Extensive),
            process: ProcessMetrics::declare(&mut declared),
            registry: declared.registry,
        };
        (metrics, declared.rows)
    }
}

/// Upper bounds of a histogram: `start`, then `count - 1` times the `factor` of the one before.
#[derive(Debug, Clone, Copy)]
struct Buckets {
    start: f64,
    factor: f64,
    count: usize,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
struct Spec {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    /// Of histograms; `None` is Prometheus' own default.
    buckets: Option<Buckets>,
}

impl Spec {
    fn opts(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    fn histogram_opts(&self) -> HistogramOpts {
        let opts = HistogramOpts::new(self.name, self.help);
        match self.buckets {
            None => opts,
            Some(Buckets {
                start,
                factor,
                count,
            }) => {
                let bounds = prometheus::exponential_buckets(start, factor, count);
                opts.buckets(bounds.expect("start, factor and count are constants of the table"))
            }
        }
    }
}

/// Where metrics are collected while they are declared.
#[derive(Default)]
struct Declared {
    registry: Registry,
    /// Type and row of each, for the comparison with etcd's list.
    rows: Vec<(&'static str, Spec)>,
}

impl Declared {
    fn add<M: Metric>(&mut self, spec: Spec) -> M {
        let metric = M::from_spec(&spec).expect("rows of the table are well formed");
        let collector = Box::new(metric.clone());
        self.registry
            .register(collector)
            .expect("each name is declared once");
        self.rows.push((M::TYPE, spec));
        metric
    }
}

/// A kind of metric that a row can declare.
trait Metric: prometheus::core::Collector + Clone + Sized + 'static {
    const TYPE: &'static str;

    fn from_spec(spec: &Spec) -> prometheus::Result<Self>;
}

/// Implements [`Metric`] for a kind, given how its constructor is called.
macro_rules! kind {
    ($kind:ty, $type:literal, |$spec:ident| $new:expr) => {
        impl Metric for $kind {
            const TYPE: &'static str = $type;

            fn from_spec($spec: &Spec) -> prometheus::Result<Self> {
                $new
            }
        }
    };
}

kind!(IntCounter, "counter", |spec| IntCounter::with_opts(
    spec.opts()
));
kind!(IntCounterVec, "counter", |spec| IntCounterVec::new(
    spec.opts(),
    spec.labels
));
kind!(prometheus::Counter, "counter", |spec| {
    prometheus::Counter::with_opts(spec.opts())
});
kind!(IntGauge, "gauge", |spec| IntGauge::with_opts(spec.opts()));
kind!(IntGaugeVec, "gauge", |spec| IntGaugeVec::new(
    spec.opts(),
    spec.labels
));
kind!(prometheus::Gauge, "gauge", |spec| {
    prometheus::Gauge::with_opts(spec.opts())
});
kind!(Histogram, "histogram", |spec| Histogram::with_opts(
    spec.histogram_opts()
));
kind!(HistogramVec, "histogram", |spec| HistogramVec::new(
    spec.histogram_opts(),
    spec.labels
));

/// Declares a group of metrics as a struct with one field each. A row is
/// `field: Kind = "name", "help" [, labels [..]] [, buckets (start, factor, count)];`.
macro_rules! group {
    ($(#[$meta:meta])* $group:ident {
        $($field:ident: $kind:ty = $name:literal, $help:literal
          $(, labels [$($label:literal),+])? $(, buckets ($start:literal, $factor:literal, $count:literal))?;)+
    }) => {
        $(#[$meta])*
        pub struct $group {
            $(#[doc = concat!("`", $name, "`: ", $help)] pub $field: $kind,)+
        }

        impl $group {
            pub(super) fn declare(declared: &mut super::Declared) -> $group {
                $group {
                    $($field: declared.add(super::Spec {
                        name: $name,
                        help: $help,
                        labels: group!(@labels $($($label),+)?),
                        buckets: group!(@buckets $($start, $factor, $count)?),
                    }),)+
                }
            }
        }
    };
    (@labels) => { &[] };
    (@labels $($label:literal),+) => { &[$($label),+] };
    (@buckets) => { None };
    (@buckets $start:literal, $factor:literal, $count:literal) => {
        Some(super::Buckets { start: $start, factor: $factor, count: $count })
    };
}
use group;

#[cfg(test)]
mod tests;
