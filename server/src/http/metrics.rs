//! `/metrics`: every metric in Prometheus' text format, whatever the method.

use std::sync::Arc;

use http::StatusCode;

use super::{Answer, HealthSource, Pages, text, typed};

/// Prometheus' text format; names are plain, so no other escaping is needed.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

impl<S: HealthSource> Pages<S> {
    pub(super) async fn metrics_page(&self) -> Answer {
        let scrapes = &self.metrics.http;
        scrapes.scrapes_in_flight.inc();
        let metrics = Arc::clone(&self.metrics);
        // A page takes about a millisecond and reads files: too long for a thread that serves other connections.
        let page = tokio::task::spawn_blocking(move || metrics.text()).await;
        scrapes.scrapes_in_flight.dec();
        let (code, answer) = match page {
            Ok(page) => ("200", typed(CONTENT_TYPE, page)),
            Err(_) => (
                "500",
                text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the metrics page could not be written\n",
                ),
            ),
        };
        scrapes.scrapes.with_label_values(&[code]).inc();
        answer
    }
}
