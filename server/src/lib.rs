//! The server of a member.

pub mod config;
