//! The network between members as faults shape it: links of this process, or network namespaces with a bridge.
//!
//! Namespaces need root, and this process must be in one of its own, where the bridge is: nothing of the machine's network
//! is touched. Packets are dropped by nftables and bounded by tbf in the namespace of the member that is concerned; what
//! a namespace cannot do (delay, without netem) is left out there.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::mesh::{Mesh, Way};

/// First bytes of the addresses of members in namespaces.
const NET: &str = "10.213.7";

/// How members reach each other.
pub enum Network {
    /// Through this process.
    Links(Mesh),
    /// Through a bridge.
    Namespaces(Namespaces),
}

impl Network {
    /// Puts the places of a cluster, which were not started yet, behind links.
    pub async fn links(cluster: &mut Cluster, count: usize) -> Result<Network> {
        let mesh = Mesh::default();
        for n in 0..count {
            cluster.join_mesh(n, &mesh).await?;
        }
        Ok(Network::Links(mesh))
    }

    /// Puts the places of a cluster, which were not started yet, into namespaces.
    pub fn namespaces(cluster: &mut Cluster, count: usize) -> Result<Network> {
        let namespaces = Namespaces::make(count)?;
        for n in 0..count {
            cluster.move_into(n, &namespaces.name(n), &address(n));
        }
        Ok(Network::Namespaces(namespaces))
    }

    /// Sets one direction between two members.
    pub fn set(&self, from: usize, to: usize, way: Way) -> Result<()> {
        match self {
            Network::Links(mesh) => mesh.set(from, to, way),
            Network::Namespaces(namespaces) => namespaces.set(from, to, way)?,
        }
        Ok(())
    }

    /// Cuts one direction between two members.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        let is_cut = true;
        self.set(
            from,
            to,
            Way {
                is_cut,
                ..Way::default()
            },
        )
    }

    /// Cuts both directions between two members.
    pub fn part(&self, one: usize, other: usize) -> Result<()> {
        self.cut(one, other)?;
        self.cut(other, one)
    }

    /// Everything passes again.
    pub fn heal(&self) -> Result<()> {
        match self {
            Network::Links(mesh) => mesh.heal(),
            Network::Namespaces(namespaces) => namespaces.heal()?,
        }
        Ok(())
    }
}

/// Namespaces of members, joined by a bridge in this process's namespace. Removed when dropped.
pub struct Namespaces {
    count: usize,
}

impl Namespaces {
    fn make(count: usize) -> Result<Namespaces> {
        let namespaces = Namespaces { count };
        run("ip", "link set lo up")?;
        run("ip", "link add kvbr type bridge")?;
        run("ip", &format!("addr add {NET}.254/24 dev kvbr"))?;
        run("ip", "link set kvbr up")?;
        for n in 0..count {
            let name = namespaces.name(n);
            run("ip", &format!("netns add {name}"))?;
            run(
                "ip",
                &format!("link add kvm{n} type veth peer name eth0 netns {name}"),
            )?;
            run("ip", &format!("link set kvm{n} master kvbr up"))?;
            let inside = format!("netns exec {name} ip");
            run("ip", &format!("{inside} link set lo up"))?;
            run(
                "ip",
                &format!("{inside} addr add {}/24 dev eth0", address(n)),
            )?;
            run("ip", &format!("{inside} link set eth0 up"))?;
            namespaces.nft(n, "add table ip faults")?;
            namespaces.nft(
                n,
                "add chain ip faults in { type filter hook input priority 0 ; }",
            )?;
        }
        Ok(namespaces)
    }

    /// The namespace of a member.
    fn name(&self, n: usize) -> String {
        format!("kvd-faults-{}-{n}", std::process::id())
    }

    fn nft(&self, n: usize, rule: &str) -> Result<()> {
        run("ip", &format!("netns exec {} nft {rule}", self.name(n)))
    }

    fn set(&self, from: usize, to: usize, way: Way) -> Result<()> {
        let source = address(from);
        if way.is_cut {
            self.nft(to, &format!("add rule ip faults in ip saddr {source} drop"))?;
        }
        if way.lost_per_mille > 0 {
            let lost = way.lost_per_mille;
            let rule = format!(
                "add rule ip faults in ip saddr {source} numgen random mod 1000 < {lost} drop"
            );
            self.nft(to, &rule)?;
        }
        if way.bytes_per_second > 0 {
            let bits = way.bytes_per_second * 8;
            let tbf =
                format!("qdisc replace dev eth0 root tbf rate {bits}bit burst 16kb latency 400ms");
            run("ip", &format!("netns exec {} tc {tbf}", self.name(from)))?;
        }
        Ok(())
    }

    fn heal(&self) -> Result<()> {
        for n in 0..self.count {
            self.nft(n, "flush chain ip faults in")?;
            // There is none unless the rate was bounded.
            let _ = run(
                "ip",
                &format!("netns exec {} tc qdisc del dev eth0 root", self.name(n)),
            );
        }
        Ok(())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for n in 0..self.count {
            // Its veth goes along.
            let _ = run("ip", &format!("netns del {}", self.name(n)));
        }
        let _ = run("ip", "link del kvbr");
    }
}

fn address(n: usize) -> String {
    format!("{NET}.{}", n + 1)
}

fn run(program: &str, args: &str) -> Result<()> {
    let output = Command::new(program)
        .args(args.split_whitespace())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {args}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
