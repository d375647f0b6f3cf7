//! Messages to JSON and back, by their descriptors.

use bytes::Bytes;
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};

use super::twice;

/// A body that is not the JSON form of its message, or bytes that are not the message.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The body is not JSON, or not JSON of this message.
    #[error("proto: {0}")]
    Json(#[from] serde_json::Error),
    /// The member answered with another message.
    #[error("proto: {0}")]
    Message(#[from] prost::DecodeError),
}

/// The encoded message of a JSON text. An empty text is an empty message.
pub(super) fn to_message(of: &MessageDescriptor, text: &[u8]) -> Result<Vec<u8>, JsonError> {
    if text.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    twice::refuse(text)?;
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let mut json = serde_json::Deserializer::from_slice(text);
    let message = DynamicMessage::deserialize_with_options(of.clone(), &mut json, &options)?;
    Ok(message.encode_to_vec())
}

/// The JSON text of an encoded message.
pub(super) fn from_message(of: &MessageDescriptor, bytes: Bytes) -> Result<Vec<u8>, JsonError> {
    let options = SerializeOptions::new()
        .stringify_64_bit_integers(true)
        .use_proto_field_name(true)
        .skip_default_fields(true);
    let message = DynamicMessage::decode(of.clone(), bytes)?;
    let mut json = serde_json::Serializer::new(Vec::new());
    message.serialize_with_options(&mut json, &options)?;
    Ok(json.into_inner())
}
