//! What a member is given that it cannot use: each time an error that names the cause and the next step, no panic,
//! nothing lost.

#![allow(clippy::unwrap_used)] // All of this is tests.

mod damage;
mod full_disk;
mod member;
mod requests;
mod start;
