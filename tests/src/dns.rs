//! A DNS server of a test: SRV records of services, and every host name of its domain is this machine. RFC 1035, RFC 2782.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

const HEADER_BYTES: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_SRV: u16 = 33;
const CLASS_IN: u16 = 1;
/// An answer; no error; recursion is available.
const ANSWERED: u16 = 0x8180;
const NO_SUCH_NAME: u16 = 0x8183;

/// Answers over UDP on loopback. Ends when dropped.
pub struct DnsServer {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl DnsServer {
    /// `services`: names as `_etcd-server._tcp.example.test`, with hosts and ports.
    pub async fn start(services: &[(&str, Vec<(String, u16)>)]) -> Result<DnsServer> {
        let services: BTreeMap<String, Vec<(String, u16)>> = services
            .iter()
            .map(|(name, targets)| (name.to_string(), targets.clone()))
            .collect();
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
        let address = socket.local_addr()?;
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                if let Ok(answer) = answer(&buffer[..length], &services) {
                    // Whoever asked asks again.
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Ok(DnsServer { address, serving })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn answer(query: &[u8], services: &BTreeMap<String, Vec<(String, u16)>>) -> Result<Vec<u8>> {
    let header = query.get(..HEADER_BYTES).context("a header")?;
    let mut at = HEADER_BYTES;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at).context("a label")?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = query.get(at..at + length).context("a whole label")?;
        labels.push(std::str::from_utf8(label)?.to_ascii_lowercase());
        at += length;
    }
    let question = query.get(HEADER_BYTES..at + 4).context("a question")?;
    let kind = u16::from_be_bytes([query[at], query[at + 1]]);
    let name = labels.join(".");

    let mut records: Vec<Vec<u8>> = Vec::new();
    let is_service = name.starts_with('_');
    if let Some(targets) = services.get(&name).filter(|_| kind == TYPE_SRV) {
        records.extend(targets.iter().map(|(host, port)| {
            let mut data = Vec::new();
            for number in [10, 5, *port] {
                data.extend(u16::to_be_bytes(number));
            }
            data.extend(host.split('.').flat_map(|label| {
                let length = u8::try_from(label.len()).expect("labels of tests are short");
                std::iter::once(length).chain(label.bytes())
            }));
            data.push(0);
            data
        }));
    } else if kind == TYPE_A && !is_service {
        records.push(vec![127, 0, 0, 1]);
    }
    let known = !is_service || services.contains_key(&name);
    let flags = if known { ANSWERED } else { NO_SUCH_NAME };

    let mut out = header[..2].to_vec();
    let count = u16::try_from(records.len())?;
    for number in [flags, 1, count, 0, 0] {
        out.extend(u16::to_be_bytes(number));
    }
    out.extend(question);
    for data in records {
        // The name of the question.
        out.extend([0xc0, HEADER_BYTES as u8]);
        for number in [kind, CLASS_IN] {
            out.extend(u16::to_be_bytes(number));
        }
        out.extend(u32::to_be_bytes(60));
        out.extend(u16::to_be_bytes(u16::try_from(data.len())?));
        out.extend(data);
    }
    Ok(out)
}
