//! What a log entry carries: any bytes are a command, which encodes to bytes that mean the same, or an error.

#![no_main]

use bytes::Bytes;
use kv_proto::command::Command;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(command) = Command::decode(Bytes::copy_from_slice(data)) {
        let again = Command::decode(command.encode()).expect("what was encoded is read again");
        assert_eq!(again, command);
    }
});
