//! `kvctl`.

fn main() {}
