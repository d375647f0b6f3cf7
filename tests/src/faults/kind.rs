//! The faults by name.

use std::fmt;

/// What is done to the cluster in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Nothing.
    None,
    /// kill -9 of a follower.
    KillFollower,
    /// kill -9 of the leader.
    KillLeader,
    /// kill -9 of two members.
    KillMajority,
    /// kill -9 of all members.
    KillAll,
    /// SIGSTOP of the leader for 1 to 30 s.
    PauseLeader,
    /// SIGSTOP of a follower for 1 to 30 s.
    PauseFollower,
    /// The leader reaches nobody.
    PartitionLeader,
    /// A follower reaches nobody.
    PartitionFollower,
    /// Packets in one direction between two members, or from one to all, are lost.
    PartitionOneWay,
    /// Two members do not reach each other, the third reaches both.
    PartitionBridge,
    /// Little bandwidth, delay and losses between all members.
    SlowLinks,
    /// fsync of the log takes long on one or on all members.
    SlowDisk,
    /// fsync of the leader's log does not return for a while.
    StalledDisk,
    /// fsync of a member's log fails: it must stop.
    FailingDisk,
    /// A member comes back without its folder: it must be refused, then it is removed and added again.
    Wipe,
    /// A member is removed and another one added in its place.
    Replace,
    /// Leadership is moved, again and again.
    MoveLeader,
    /// Compaction and defragmentation on all members.
    CompactDefragment,
    /// The wall clock of a member jumps.
    ClockWall,
    /// All clocks of a member jump, the monotonic one too.
    ClockMonotonic,
    /// The disks of all members run full at once.
    FullDisks,
}

/// What a fault needs of the machine and of the build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// A kvd with `disk-faults`.
    DiskFaults,
    /// libfaketime.
    Faketime,
    /// Small file systems, which root can mount.
    Mounts,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 22] = [
        Kind::None,
        Kind::KillFollower,
        Kind::KillLeader,
        Kind::KillMajority,
        Kind::KillAll,
        Kind::PauseLeader,
        Kind::PauseFollower,
        Kind::PartitionLeader,
        Kind::PartitionFollower,
        Kind::PartitionOneWay,
        Kind::PartitionBridge,
        Kind::SlowLinks,
        Kind::SlowDisk,
        Kind::StalledDisk,
        Kind::FailingDisk,
        Kind::Wipe,
        Kind::Replace,
        Kind::MoveLeader,
        Kind::CompactDefragment,
        Kind::ClockWall,
        Kind::ClockMonotonic,
        Kind::FullDisks,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::None => "none",
            Kind::KillFollower => "kill-follower",
            Kind::KillLeader => "kill-leader",
            Kind::KillMajority => "kill-majority",
            Kind::KillAll => "kill-all",
            Kind::PauseLeader => "pause-leader",
            Kind::PauseFollower => "pause-follower",
            Kind::PartitionLeader => "partition-leader",
            Kind::PartitionFollower => "partition-follower",
            Kind::PartitionOneWay => "partition-one-way",
            Kind::PartitionBridge => "partition-bridge",
            Kind::SlowLinks => "slow-links",
            Kind::SlowDisk => "slow-disk",
            Kind::StalledDisk => "stalled-disk",
            Kind::FailingDisk => "failing-disk",
            Kind::Wipe => "wipe",
            Kind::Replace => "replace",
            Kind::MoveLeader => "move-leader",
            Kind::CompactDefragment => "compact-defragment",
            Kind::ClockWall => "clock-wall",
            Kind::ClockMonotonic => "clock-monotonic",
            Kind::FullDisks => "full-disks",
        }
    }

    /// The fault of that name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// What it needs.
    pub fn need(self) -> Need {
        match self {
            Kind::SlowDisk | Kind::StalledDisk | Kind::FailingDisk => Need::DiskFaults,
            Kind::ClockWall | Kind::ClockMonotonic => Need::Faketime,
            Kind::FullDisks => Need::Mounts,
            _ => Need::Nothing,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
