//! Every service, method, message, field and enum value has etcd 3.7's name, number and type.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::collections::BTreeMap;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};
use serde_json::{Value, json};

#[test]
fn the_wire_surface_is_etcds() {
    let want: Value = serde_json::from_str(include_str!("fixtures/wire-3.7.json")).unwrap();
    let have = surface();
    for section in ["services", "messages", "enums"] {
        let items = want[section].as_array().unwrap();
        assert!(!items.is_empty(), "no {section} to compare with");
        for item in items {
            let name = item["name"].as_str().unwrap();
            let found = have
                .get(name)
                .unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!(&normalized(item), found, "{name} differs");
        }
    }
}

/// All definitions of the compiled files by full name, in the fixture's form.
fn surface() -> BTreeMap<String, Value> {
    let set = FileDescriptorSet::decode(kv_proto::DESCRIPTORS).unwrap();
    let mut out = BTreeMap::new();
    for file in &set.file {
        let package = file.package();
        for message in &file.message_type {
            add_message(&mut out, package, message);
        }
        for e in &file.enum_type {
            add_enum(&mut out, package, e);
        }
        for service in &file.service {
            let methods: Vec<Value> = service
                .method
                .iter()
                .map(|m| {
                    json!({
                        "name": m.name(),
                        "request": m.input_type().trim_start_matches('.'),
                        "response": m.output_type().trim_start_matches('.'),
                        "client_streaming": m.client_streaming(),
                        "server_streaming": m.server_streaming(),
                    })
                })
                .collect();
            let name = format!("{package}.{}", service.name());
            out.insert(name.clone(), json!({ "name": name, "methods": methods }));
        }
    }
    out
}

fn add_message(out: &mut BTreeMap<String, Value>, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    let mut fields: Vec<Value> = message
        .field
        .iter()
        .map(|f| {
            let kind = match f.r#type() {
                Type::Message => "message",
                Type::Enum => "enum",
                Type::Bytes => "bytes",
                Type::String => "string",
                Type::Bool => "bool",
                Type::Int32 => "int32",
                Type::Int64 => "int64",
                Type::Uint32 => "uint32",
                Type::Uint64 => "uint64",
                other => panic!("{name}.{}: etcd has no {other:?}", f.name()),
            };
            let mut field = json!({ "name": f.name(), "number": f.number(), "type": kind });
            if matches!(f.r#type(), Type::Message | Type::Enum) {
                field["ref"] = json!(f.type_name().trim_start_matches('.'));
            }
            if let Some(index) = f.oneof_index {
                field["oneof"] = json!(message.oneof_decl[index as usize].name());
            }
            if f.label() == Label::Repeated {
                field["repeated"] = json!(true);
            }
            field
        })
        .collect();
    fields.sort_by_key(|f| f["number"].as_i64());
    out.insert(name.clone(), json!({ "name": name, "fields": fields }));
    for nested in &message.nested_type {
        add_message(out, &name, nested);
    }
    for e in &message.enum_type {
        add_enum(out, &name, e);
    }
}

fn add_enum(out: &mut BTreeMap<String, Value>, scope: &str, e: &EnumDescriptorProto) {
    let name = format!("{scope}.{}", e.name());
    let values: Vec<Value> = e
        .value
        .iter()
        .map(|v| json!({ "name": v.name(), "number": v.number() }))
        .collect();
    out.insert(name.clone(), json!({ "name": name, "values": values }));
}

/// Field order in the published list is the source file's; numbers identify a field.
fn normalized(item: &Value) -> Value {
    let mut item = item.clone();
    if let Some(fields) = item.get_mut("fields").and_then(Value::as_array_mut) {
        fields.sort_by_key(|f| f["number"].as_i64());
    }
    item
}
