use std::collections::BTreeMap;

use http::Request;
use http_body_util::BodyExt;
use parking_lot::Mutex;

use super::*;
use crate::config::Config;

/// A member whose state the test sets.
#[derive(Clone, Default)]
struct State {
    serializable: Option<String>,
    linearizable: Option<String>,
    leaderless: bool,
    learner: bool,
    alarms: Vec<AlarmType>,
    versions: Versions,
}

struct Fake(Mutex<State>);

impl HealthSource for Fake {
    async fn serializable_read(&self) -> Result<(), String> {
        self.0.lock().serializable.clone().map_or(Ok(()), Err)
    }

    async fn linearizable_read(&self) -> Result<(), String> {
        self.0.lock().linearizable.clone().map_or(Ok(()), Err)
    }

    fn has_leader(&self) -> bool {
        !self.0.lock().leaderless
    }

    fn is_learner(&self) -> bool {
        self.0.lock().learner
    }

    fn alarms(&self) -> Vec<AlarmType> {
        self.0.lock().alarms.clone()
    }

    fn versions(&self) -> Versions {
        self.0.lock().versions.clone()
    }

    fn raft_status(&self) -> RaftStatus {
        RaftStatus {
            id: 0xabc,
            term: 2,
            vote: 0xabc,
            commit: 9,
            leader: 0xabc,
            state: "StateLeader",
            applied: 8,
        }
    }
}

fn pages(config: &Config, state: State) -> Pages<Fake> {
    Pages::new(
        Arc::new(Fake(Mutex::new(state))),
        Arc::new(Metrics::new(config)),
        Front::new(config),
    )
}

fn healthy() -> Pages<Fake> {
    pages(&Config::default(), State::default())
}

/// Status, headers and body of the answer to one request.
struct Seen {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

async fn send(
    pages: &Pages<Fake>,
    listener: Listener,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Seen {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (head, ()) = request.body(()).unwrap().into_parts();
    let (parts, body) = pages.answer(listener, &head).await.into_parts();
    let headers = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    let body = body.collect().await.unwrap().to_bytes();
    Seen {
        status: parts.status.as_u16(),
        headers: headers.collect(),
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

async fn get(pages: &Pages<Fake>, path: &str) -> (u16, String) {
    let seen = send(pages, Listener::Client, "GET", path, &[]).await;
    (seen.status, seen.body)
}

const HEALTHY: &str = "{\"health\":\"true\",\"reason\":\"\"}";

#[tokio::test]
async fn health_is_true_without_a_line_feed_and_false_with_one() {
    let seen = send(&healthy(), Listener::Client, "GET", "/health", &[]).await;
    assert_eq!((seen.status, seen.body.as_str()), (200, HEALTHY));
    assert_eq!(seen.headers["content-type"], "text/plain; charset=utf-8");
    assert!(!seen.headers.contains_key("x-content-type-options"));
    let sick = pages(
        &Config::default(),
        State {
            leaderless: true,
            ..State::default()
        },
    );
    let seen = send(&sick, Listener::Client, "GET", "/health", &[]).await;
    assert_eq!(
        (seen.status, seen.body.as_str()),
        (
            503,
            "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n"
        )
    );
    assert_eq!(seen.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(seen.headers["x-content-type-options"], "nosniff");
}

#[tokio::test]
async fn health_names_the_first_alarm_that_is_not_excluded() {
    let alarms = vec![AlarmType::Nospace, AlarmType::Corrupt];
    let pages = pages(
        &Config::default(),
        State {
            alarms,
            ..State::default()
        },
    );
    let falsehood = |alarm: &str| {
        (
            503,
            format!("{{\"health\":\"false\",\"reason\":\"ALARM {alarm}\"}}\n"),
        )
    };
    assert_eq!(get(&pages, "/health").await, falsehood("NOSPACE"));
    assert_eq!(
        get(&pages, "/health?exclude=NOSPACE").await,
        falsehood("CORRUPT")
    );
    assert_eq!(
        get(&pages, "/health?exclude=CORRUPT&exclude=NOSPACE").await,
        (200, HEALTHY.to_owned())
    );
    let page = String::from_utf8(pages.metrics.text()).unwrap();
    assert!(page.contains("etcd_server_health_failures 2\n"));
    assert!(page.contains("etcd_server_health_success 1\n"));
}

#[tokio::test]
async fn health_reads_as_asked() {
    let state = State {
        linearizable: Some("etcdserver: request timed out".to_owned()),
        leaderless: false,
        ..State::default()
    };
    let member = pages(&Config::default(), state);
    let timed_out =
        "{\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: request timed out\"}\n";
    assert_eq!(get(&member, "/health").await, (503, timed_out.to_owned()));
    assert_eq!(
        get(&member, "/health?serializable=1").await,
        (503, timed_out.to_owned())
    );
    assert_eq!(
        get(&member, "/health?serializable=true").await,
        (200, HEALTHY.to_owned())
    );
    let leaderless = pages(
        &Config::default(),
        State {
            leaderless: true,
            ..State::default()
        },
    );
    assert_eq!(
        get(&leaderless, "/health?exclude=NOSPACE&serializable=true").await,
        (200, HEALTHY.to_owned())
    );
    let broken = pages(
        &Config::default(),
        State {
            serializable: Some("disk \"gone\"".to_owned()),
            ..State::default()
        },
    );
    let reason = "{\"health\":\"false\",\"reason\":\"RANGE ERROR:disk \\\"gone\\\"\"}\n";
    assert_eq!(
        get(&broken, "/health?serializable=true").await,
        (503, reason.to_owned())
    );
}

#[tokio::test]
async fn probes_answer_ok_or_one_line_for_each_check() {
    let pages = healthy();
    let check = async |path: &str, expect: &str| {
        assert_eq!(get(&pages, path).await, (200, expect.to_owned()), "{path}")
    };
    check("/livez", "ok\n").await;
    check("/livez?verbose", "[+]serializable_read ok\nok\n").await;
    check("/livez?verbose=false", "[+]serializable_read ok\nok\n").await;
    check("/readyz", "ok\n").await;
    check(
        "/readyz?exclude=nothing&verbose",
        "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n",
    )
    .await;
    check(
        "/readyz?verbose&exclude=serializable_read",
        "[+]data_corruption ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n",
    )
    .await;
    check("/livez?exclude=serializable_read&verbose", "ok\n").await;
    check("/readyz/non_learner", "ok\n").await;
    check(
        "/readyz/non_learner?verbose&exclude=non_learner",
        "[+]non_learner ok\nok\n",
    )
    .await;
    let seen = send(&pages, Listener::Client, "GET", "/livez", &[]).await;
    assert_eq!(seen.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(seen.headers["x-content-type-options"], "nosniff");
}

#[tokio::test]
async fn failed_probes_tell_every_check_and_end_with_an_empty_line() {
    let state = State {
        alarms: vec![AlarmType::Nospace, AlarmType::Corrupt],
        linearizable: Some("etcdserver: request timed out".to_owned()),
        learner: true,
        ..State::default()
    };
    let pages = pages(&Config::default(), state);
    let check = async |path: &str, expect: &str| {
        assert_eq!(get(&pages, path).await, (503, expect.to_owned()), "{path}")
    };
    check(
        "/readyz",
        "[-]data_corruption failed: alarm activated: CORRUPT\n[+]serializable_read ok\n\
         [-]linearizable_read failed: etcdserver: request timed out\n[-]non_learner failed: not supported for learner\n\n",
    )
    .await;
    check(
        "/readyz/data_corruption",
        "[-]data_corruption failed: alarm activated: CORRUPT\n\n",
    )
    .await;
    assert_eq!(get(&pages, "/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(
        get(
            &pages,
            "/readyz?exclude=data_corruption&exclude=linearizable_read&exclude=non_learner"
        )
        .await
        .0,
        200
    );
    let page = String::from_utf8(pages.metrics.text()).unwrap();
    assert!(page.contains("etcd_server_healthcheck{name=\"data_corruption\",type=\"readyz\"} 0\n"));
    assert!(
        page.contains("etcd_server_healthcheck{name=\"serializable_read\",type=\"livez\"} 1\n")
    );
    assert!(page.contains("etcd_server_healthchecks_total{name=\"data_corruption\",status=\"error\",type=\"readyz\"} 2\n"));
    assert!(page.contains("etcd_server_healthchecks_total{name=\"serializable_read\",status=\"success\",type=\"readyz\"} 2\n"));
}

#[tokio::test]
async fn version_shows_what_is_decided() {
    let undecided =
        "{\"etcdserver\":\"3.7.1\",\"etcdcluster\":\"not_decided\",\"storage\":\"unknown\"}";
    let seen = send(&healthy(), Listener::Client, "GET", "/version", &[]).await;
    assert_eq!((seen.status, seen.body.as_str()), (200, undecided));
    assert_eq!(seen.headers["content-type"], "application/json");
    let versions = Versions {
        cluster: Some("3.7.0".to_owned()),
        storage: Some("3.7.0".to_owned()),
    };
    let pages = pages(
        &Config::default(),
        State {
            versions,
            ..State::default()
        },
    );
    let decided = "{\"etcdserver\":\"3.7.1\",\"etcdcluster\":\"3.7.0\",\"storage\":\"3.7.0\"}";
    assert_eq!(get(&pages, "/version").await, (200, decided.to_owned()));
}

#[tokio::test]
async fn unknown_paths_and_checks_are_not_found() {
    let pages = healthy();
    for path in [
        "/",
        "/nope",
        "/health/",
        "/livez/",
        "/livez/linearizable_read",
        "/readyz/nope",
        "/readyz/data_corruption/x",
        "/debug/pprof/",
        "/config/local/log",
    ] {
        let seen = send(&pages, Listener::Client, "GET", path, &[]).await;
        assert_eq!(
            (seen.status, seen.body.as_str()),
            (404, "404 page not found\n"),
            "{path}"
        );
        assert_eq!(seen.headers["content-type"], "text/plain; charset=utf-8");
        assert_eq!(seen.headers["x-content-type-options"], "nosniff");
    }
}

#[tokio::test]
async fn other_methods_are_refused_except_on_metrics() {
    let pages = healthy();
    for method in ["POST", "HEAD", "DELETE"] {
        for path in [
            "/health",
            "/livez",
            "/readyz/non_learner",
            "/version",
            "/debug/vars",
        ] {
            let seen = send(&pages, Listener::Client, method, path, &[]).await;
            assert_eq!(
                (seen.status, seen.body.as_str()),
                (405, "Method Not Allowed\n"),
                "{method} {path}"
            );
            assert_eq!(seen.headers["allow"], "GET");
        }
        assert_eq!(
            send(&pages, Listener::Client, method, "/metrics", &[])
                .await
                .status,
            200
        );
        assert_eq!(
            send(&pages, Listener::Client, method, "/nope", &[])
                .await
                .status,
            404
        );
    }
}

#[tokio::test]
async fn metrics_page_counts_its_scrapes() {
    let pages = healthy();
    let seen = send(&pages, Listener::Metrics, "GET", "/metrics", &[]).await;
    assert_eq!(seen.status, 200);
    assert_eq!(
        seen.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
    );
    assert!(
        seen.body
            .contains("promhttp_metric_handler_requests_in_flight 1\n")
    );
    let seen = send(&pages, Listener::Metrics, "GET", "/metrics", &[]).await;
    assert!(
        seen.body
            .contains("promhttp_metric_handler_requests_total{code=\"200\"} 1\n")
    );
}

#[tokio::test]
async fn metrics_listener_has_health_and_nothing_else() {
    let pages = pages(
        &Config {
            host_whitelist: vec!["good.com".to_owned()],
            ..Config::default()
        },
        State::default(),
    );
    for (path, status) in [
        ("/metrics", 200),
        ("/health", 200),
        ("/livez", 200),
        ("/readyz/non_learner", 200),
        ("/version", 404),
        ("/debug/vars", 404),
    ] {
        let seen = send(
            &pages,
            Listener::Metrics,
            "GET",
            path,
            &[("host", "evil.com"), ("origin", "http://a.b")],
        )
        .await;
        assert_eq!(seen.status, status, "{path}");
        assert!(
            !seen.headers.contains_key("access-control-allow-origin"),
            "{path}"
        );
    }
    assert_eq!(
        send(&pages, Listener::Metrics, "OPTIONS", "/health", &[])
            .await
            .status,
        405
    );
}

#[tokio::test]
async fn debug_variables_show_raft() {
    let seen = send(&healthy(), Listener::Client, "GET", "/debug/vars", &[]).await;
    assert_eq!(
        seen.headers["content-type"],
        "application/json; charset=utf-8"
    );
    let variables: serde_json::Value = serde_json::from_str(&seen.body).unwrap();
    assert_eq!(variables["raft.status"]["id"], "abc");
    assert_eq!(variables["raft.status"]["commit"], 9);
    assert_eq!(variables["raft.status"]["raftState"], "StateLeader");
    assert_eq!(variables["cmdline"].as_array().unwrap().len(), 1);
    assert!(variables["file_descriptor_limit"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn any_origin_may_read_by_default_and_options_is_always_answered() {
    let pages = healthy();
    for (method, path, status) in [
        ("GET", "/version", 200),
        ("GET", "/nope", 404),
        ("OPTIONS", "/health", 200),
        ("OPTIONS", "/nope", 200),
    ] {
        let seen = send(&pages, Listener::Client, method, path, &[]).await;
        assert_eq!(seen.status, status);
        assert_eq!(seen.headers["access-control-allow-origin"], "*");
        assert_eq!(
            seen.headers["access-control-allow-methods"],
            "POST, GET, OPTIONS, PUT, DELETE"
        );
        assert_eq!(
            seen.headers["access-control-allow-headers"],
            "accept, content-type, authorization"
        );
        if method == "OPTIONS" {
            assert_eq!(seen.body, "");
        }
    }
}

#[tokio::test]
async fn listed_origins_are_echoed_and_others_get_nothing() {
    let cors = vec!["http://a.b".to_owned(), "http://c.d:1".to_owned()];
    let pages = pages(
        &Config {
            cors,
            ..Config::default()
        },
        State::default(),
    );
    let seen = send(
        &pages,
        Listener::Client,
        "GET",
        "/version",
        &[("origin", "http://c.d:1")],
    )
    .await;
    assert_eq!(seen.headers["access-control-allow-origin"], "http://c.d:1");
    for headers in [vec![], vec![("origin", "http://z.z")]] {
        let seen = send(&pages, Listener::Client, "GET", "/version", &headers).await;
        assert_eq!(seen.status, 200);
        assert!(
            seen.headers
                .keys()
                .all(|name| !name.starts_with("access-control"))
        );
    }
}

#[tokio::test]
async fn plain_http_serves_only_listed_hosts() {
    let host_whitelist = vec!["good.com".to_owned(), "::1".to_owned()];
    let pages = pages(
        &Config {
            host_whitelist,
            ..Config::default()
        },
        State::default(),
    );
    for host in ["good.com", "good.com:99", "[::1]:2379", "[::1]"] {
        assert_eq!(
            send(
                &pages,
                Listener::Client,
                "GET",
                "/version",
                &[("host", host)]
            )
            .await
            .status,
            200,
            "{host}"
        );
    }
    for host in ["evil.com", "GOOD.com", "", "good.com.evil.com:80"] {
        let seen = send(
            &pages,
            Listener::Client,
            "OPTIONS",
            "/version",
            &[("host", host)],
        )
        .await;
        assert_eq!(seen.status, 421, "{host}");
        assert!(seen.body.contains("--host-whitelist"), "{}", seen.body);
        assert!(!seen.headers.contains_key("access-control-allow-origin"));
    }
    assert_eq!(
        send(
            &pages,
            Listener::ClientTls,
            "GET",
            "/version",
            &[("host", "evil.com")]
        )
        .await
        .status,
        200
    );
}
