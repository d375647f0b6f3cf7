//! `process_*` and `os_fd_*`: what the kernel knows about this process, read from `/proc` when the page is.
//!
//! A value that cannot be read keeps its last state. Source: Prometheus' process collector, Go client.

use std::fs;

use parking_lot::Mutex;
use prometheus::{Counter, Gauge};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::group;

/// Unit of times in `/proc`, the same on all of Linux' processors.
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;

group! {
    /// The values that are filled from `/proc`.
    #[allow(unreachable_pub)]
    Values {
        cpu_seconds: Counter = "process_cpu_seconds_total", "CPU time in seconds.";
        max_fds: Gauge = "process_max_fds", "Limit of open file descriptors.";
        open_fds: Gauge = "process_open_fds", "Open file descriptors.";
        resident_bytes: Gauge = "process_resident_memory_bytes", "Resident memory in bytes.";
        start_time: Gauge = "process_start_time_seconds", "Start of the process, as Unix time.";
        virtual_bytes: Gauge = "process_virtual_memory_bytes", "Virtual memory in bytes.";
        virtual_bytes_max: Gauge = "process_virtual_memory_max_bytes", "Limit of virtual memory in bytes.";
        network_received: Counter = "process_network_receive_bytes_total", "Bytes received in the process's network namespace.";
        network_sent: Counter = "process_network_transmit_bytes_total", "Bytes sent in the process's network namespace.";
        fd_limit: Gauge = "os_fd_limit", "Limit of open file descriptors.";
        fd_used: Gauge = "os_fd_used", "Open file descriptors.";
    }
}

/// Facts of the kernel about this process.
pub struct ProcessMetrics {
    values: Values,
    /// One refresh at a time: counters are raised by what they lack.
    refreshing: Mutex<()>,
}

impl ProcessMetrics {
    pub(super) fn declare(declared: &mut super::Declared) -> ProcessMetrics {
        ProcessMetrics {
            values: Values::declare(declared),
            refreshing: Mutex::new(()),
        }
    }

    /// Reads all values.
    pub(super) fn refresh(&self) {
        let _one = self.refreshing.lock();
        let values = &self.values;
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        raise(
            &values.cpu_seconds,
            cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        );
        // Go shows an absent limit as the largest number.
        let limit = |resource| getrlimit(resource).current.unwrap_or(u64::MAX) as f64;
        for gauge in [&values.max_fds, &values.fd_limit] {
            gauge.set(limit(Resource::Nofile));
        }
        values.virtual_bytes_max.set(limit(Resource::As));
        if let Ok(folder) = fs::read_dir("/proc/self/fd") {
            // The listing itself holds one.
            let open = folder.count().saturating_sub(1) as f64;
            values.open_fds.set(open);
            values.fd_used.set(open);
        }
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            for (label, gauge) in [
                ("VmRSS:", &values.resident_bytes),
                ("VmSize:", &values.virtual_bytes),
            ] {
                if let Some(kib) = number_after(&status, label) {
                    gauge.set(kib * 1024.0);
                }
            }
        }
        if let Some(start) = start_time() {
            values.start_time.set(start);
        }
        if let Ok(netstat) = fs::read_to_string("/proc/self/net/netstat") {
            raise_from(&netstat, "InOctets", &values.network_received);
            raise_from(&netstat, "OutOctets", &values.network_sent);
        }
    }
}

fn raise(counter: &Counter, to: f64) {
    let lacking = to - counter.get();
    if lacking > 0.0 {
        counter.inc_by(lacking);
    }
}

fn raise_from(netstat: &str, column: &str, counter: &Counter) {
    if let Some(value) = ip_ext(netstat, column) {
        raise(counter, value);
    }
}

/// The first number after `label` at the start of a line.
fn number_after(text: &str, label: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A column of the `IpExt:` table, whose first line holds the names and whose second the values.
fn ip_ext(netstat: &str, column: &str) -> Option<f64> {
    let mut rows = netstat
        .lines()
        .filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (rows.next()?, rows.next()?);
    let at = names.split_whitespace().position(|name| name == column)?;
    values.split_whitespace().nth(at)?.parse().ok()
}

/// Unix time at which the process began.
fn start_time() -> Option<f64> {
    let boot = number_after(&fs::read_to_string("/proc/stat").ok()?, "btime ")?;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything; the state after it is field 3, the start field 22.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: f64 = fields.split_whitespace().nth(22 - 3)?.parse().ok()?;
    Some(boot + ticks / CLOCK_TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_netstat_are_found_by_name() {
        let netstat = "TcpExt: A InOctets\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 1234 5678\n";
        assert_eq!(ip_ext(netstat, "InOctets"), Some(1234.0));
        assert_eq!(ip_ext(netstat, "OutOctets"), Some(5678.0));
        assert_eq!(ip_ext(netstat, "Nothing"), None);
        assert_eq!(ip_ext("", "InOctets"), None);
    }

    #[test]
    fn kernel_values_are_plausible() {
        let process = ProcessMetrics::declare(&mut super::super::Declared::default());
        process.refresh();
        let values = &process.values;
        assert!(values.cpu_seconds.get() > 0.0);
        assert!(values.resident_bytes.get() > 1e6);
        assert!(values.virtual_bytes.get() >= values.resident_bytes.get());
        assert!(values.open_fds.get() >= 3.0);
        assert!(values.max_fds.get() >= values.open_fds.get());
        // Between 2020 and 2100.
        assert!((1.57e9..4.2e9).contains(&values.start_time.get()));
    }
}
