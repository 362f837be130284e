//! Counters of every sandbox, in the text format that Prometheus reads.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use vsock_relay::endpoint::Endpoint;

/// One number that only grows, or (connections) goes up and down.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted for one route.
#[derive(Debug, Default)]
pub(super) struct RouteMetrics {
    pub(super) connections: Counter,
    pub(super) bytes_up: Counter,
    pub(super) bytes_down: Counter,
    pub(super) probes_well: Counter,
    pub(super) probes_failed: Counter,
    probe_micros: Counter,
}

impl RouteMetrics {
    pub(super) fn probed(&self, latency: Duration) {
        self.probes_well.add(1);
        self.probe_micros.add(latency.as_micros() as u64);
    }
}

/// What is counted for one sandbox.
#[derive(Debug, Default)]
pub(super) struct SandboxMetrics {
    pub(super) open: Counter,
    pub(super) waiting: Counter,
    pub(super) accepted: Counter,
    pub(super) failovers: Counter,
    pub(super) redials: Counter,
    pub(super) given_up: Counter,
}

/// One sandbox as it is now.
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    pub(super) metrics: &'a SandboxMetrics,
    pub(super) routes: Vec<RouteSample<'a>>,
}

pub(super) struct RouteSample<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) in_use: bool,
    pub(super) latency: Option<Duration>,
    pub(super) metrics: &'a RouteMetrics,
}

type SandboxValue = fn(&SandboxMetrics) -> u64;
/// `None`: nothing to tell yet.
type RouteValue = fn(&RouteSample<'_>) -> Option<f64>;

const SANDBOX_SERIES: [(&str, &str, &str, SandboxValue); 6] = [
    ("envd_bridge_connections_open", "gauge", "Client connections that are open.", |m| m.open.get()),
    ("envd_bridge_connections_waiting", "gauge", "Client connections that wait for a route.", |m| {
        m.waiting.get()
    }),
    ("envd_bridge_connections_total", "counter", "Client connections accepted.", |m| m.accepted.get()),
    ("envd_bridge_failovers_total", "counter", "Changes of route.", |m| m.failovers.get()),
    ("envd_bridge_redials_total", "counter", "Connections dialled again before a byte was sent.", |m| {
        m.redials.get()
    }),
    ("envd_bridge_given_up_total", "counter", "Clients closed because no route answered.", |m| {
        m.given_up.get()
    }),
];

const ROUTE_SERIES: [(&str, &str, &str, RouteValue); 8] = [
    ("envd_bridge_route_in_use", "gauge", "1 for the route of new connections.", |r| {
        Some(f64::from(u8::from(r.in_use)))
    }),
    ("envd_bridge_route_connections_total", "counter", "Connections led over a route.", |r| {
        Some(count(&r.metrics.connections))
    }),
    ("envd_bridge_bytes_to_guest_total", "counter", "Bytes from clients to the guest.", |r| {
        Some(count(&r.metrics.bytes_up))
    }),
    ("envd_bridge_bytes_from_guest_total", "counter", "Bytes from the guest to clients.", |r| {
        Some(count(&r.metrics.bytes_down))
    }),
    ("envd_bridge_health_latency_seconds", "gauge", "How long the last answer to GET /health took.", |r| {
        r.latency.map(|latency| latency.as_secs_f64())
    }),
    ("envd_bridge_health_seconds_total", "counter", "Time that all answers to GET /health took.", |r| {
        Some(r.metrics.probe_micros.get() as f64 / 1e6)
    }),
    ("envd_bridge_health_answers_total", "counter", "Answers to GET /health.", |r| {
        Some(count(&r.metrics.probes_well))
    }),
    ("envd_bridge_health_failures_total", "counter", "Probes that failed.", |r| {
        Some(count(&r.metrics.probes_failed))
    }),
];

fn count(counter: &Counter) -> f64 {
    counter.get() as f64
}

/// The whole page.
pub(super) fn render(samples: &[Sample<'_>]) -> String {
    let mut page = String::new();
    for (name, kind, help, value) in SANDBOX_SERIES {
        head(&mut page, name, kind, help);
        for sample in samples {
            let _ = writeln!(page, "{name}{{sandbox=\"{}\"}} {}", label(sample.name), value(sample.metrics));
        }
    }
    for (name, kind, help, value) in ROUTE_SERIES {
        head(&mut page, name, kind, help);
        for sample in samples {
            for route in &sample.routes {
                if let Some(value) = value(route) {
                    let endpoint = route.endpoint.to_string();
                    let labels = format!("sandbox=\"{}\",route=\"{}\"", label(sample.name), label(&endpoint));
                    let _ = writeln!(page, "{name}{{{labels}}} {value}");
                }
            }
        }
    }
    page
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// The three characters that the format reserves.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sandbox_and_route_has_its_line_and_labels_are_escaped() {
        let metrics = SandboxMetrics::default();
        metrics.accepted.add(3);
        let endpoint: Endpoint = "unix:/a\"b".parse().unwrap();
        let route = RouteMetrics::default();
        route.probed(Duration::from_millis(2));
        let routes = vec![RouteSample {
            endpoint: &endpoint,
            in_use: true,
            latency: Some(Duration::from_millis(2)),
            metrics: &route,
        }];
        let page = render(&[Sample { name: "s\\1", metrics: &metrics, routes }]);
        assert!(page.contains("envd_bridge_connections_total{sandbox=\"s\\\\1\"} 3\n"), "{page}");
        assert!(page.contains(
            "envd_bridge_health_latency_seconds{sandbox=\"s\\\\1\",route=\"unix:/a\\\"b\"} 0.002\n"
        ));
    }
}
