//! Claims about exports, on a small random model kept in `tests/data` in both forms and on graphs made here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::core::error::{Error, Kind};
use crate::gateway::model::Model;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

const EXPORT: &str = "onnx/model.onnx";

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn export() -> Vec<u8> {
    std::fs::read(data("tiny-bert-onnx").join(EXPORT)).unwrap()
}

/// Loads a copy of the small exported model with other bytes in place of the graph.
fn load(label: &str, bytes: &[u8]) -> Result<Model, Error> {
    let dir = std::env::temp_dir().join(format!("helper-ai-onnx-{}-{label}", std::process::id()));
    std::fs::create_dir_all(dir.join("onnx")).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(data("tiny-bert-onnx").join(name), dir.join(name)).unwrap();
    }
    std::fs::write(dir.join(EXPORT), bytes).unwrap();
    let loaded = Model::load(&dir, 1);
    std::fs::remove_dir_all(&dir).unwrap();
    loaded
}

fn refused(label: &str, bytes: &[u8], what: &str) {
    let error = load(label, bytes).err().unwrap_or_else(|| panic!("accepted: {label}"));
    assert_eq!(error.kind, Kind::NotReady, "{label}");
    let detail = error.detail.unwrap();
    assert!(detail.contains(EXPORT) && detail.contains(what), "{label}: {detail}");
    assert!(error.hint.unwrap().contains(EXPORT), "{label}");
}

fn changed(change: impl FnOnce(&mut GraphProto)) -> Vec<u8> {
    let mut model = ModelProto::decode(&export()[..]).unwrap();
    change(model.graph.as_mut().unwrap());
    model.encode_to_vec()
}

fn tensor(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    TensorProto { dims: dims.to_vec(), data_type: 1, name: name.into(), raw_data, ..Default::default() }
}

fn node(op_type: &str, input: &[&str], output: &str) -> NodeProto {
    let input = input.iter().map(|name| name.to_string()).collect();
    NodeProto { op_type: op_type.into(), input, output: vec![output.into()], attribute: vec![] }
}

fn with(mut node: NodeProto, attribute: AttributeProto) -> NodeProto {
    node.attribute.push(attribute);
    node
}

fn graph(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> Graph {
    let model = ModelProto { graph: Some(GraphProto { node, initializer }) };
    Graph::read(model.encode_to_vec().into()).unwrap()
}

fn transb(i: i64) -> AttributeProto {
    AttributeProto { name: "transB".into(), i, ..Default::default() }
}

/// A 3 by 2 matrix `m` and a bias `layer.bias`.
fn parts() -> Vec<TensorProto> {
    vec![tensor("m", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), tensor("layer.bias", &[2], &[0.0; 2])]
}

#[test]
fn both_forms_of_a_model_give_the_embeddings_of_the_reference() {
    let reference: serde_json::Value =
        serde_json::from_slice(&std::fs::read(data("tiny-bert-reference.json")).unwrap()).unwrap();
    let reference = reference.as_array().unwrap();
    let texts: Vec<&str> = reference.iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 6);
    let plain = Model::load(&data("tiny-bert"), 1).unwrap().embed(&texts).unwrap();
    let exported = Model::load(&data("tiny-bert-onnx"), 1).unwrap().embed(&texts).unwrap();
    for (index, line) in reference.iter().enumerate() {
        let expected = line["embedding"].as_array().unwrap();
        assert_eq!((expected.len(), plain[index].len(), exported[index].len()), (32, 32, 32));
        for (at, expected) in expected.iter().enumerate() {
            let (plain, exported) = (plain[index][at], exported[index][at]);
            assert!((plain - exported).abs() < 1e-5, "{:?} at {at}: {plain}, {exported}", texts[index]);
            let expected = expected.as_f64().unwrap() as f32;
            assert!((exported - expected).abs() < 1e-5, "{:?} at {at}: {exported}, {expected}", texts[index]);
        }
    }
}

#[test]
fn a_damaged_export_is_refused_with_what_is_wrong() {
    let whole = export();
    assert!(load("whole", &whole).is_ok());
    refused("empty", &[], "it holds no graph");
    refused("cut", &whole[..whole.len() / 2], "");
    refused("garbage", &whole.iter().map(|byte| byte ^ 0x5a).take(4096).collect::<Vec<_>>(), "");
    let short = changed(|graph| graph.initializer[0].raw_data.truncate(100));
    refused("short", &short, "\"embeddings.word_embeddings.weight\" has 100 bytes, expected 16384");
    let outside = changed(|graph| graph.initializer[0].data_location = 1);
    refused("outside", &outside, "\"embeddings.word_embeddings.weight\" is kept outside of the file");
    let numbers = changed(|graph| graph.initializer[0].data_type = 7);
    refused("numbers", &numbers, "is of data type 7, expected float32 or float16");
    let shape = changed(|graph| graph.initializer[0].dims = vec![64, 64]);
    refused("shape", &shape, "has shape [64, 64], expected [128, 32]");
    for dims in [vec![-1, 32], vec![i64::MAX, i64::MAX]] {
        refused("impossible", &changed(|graph| graph.initializer[0].dims = dims), "has the impossible shape");
    }
    let nodeless = changed(|graph| graph.node.clear());
    refused("nodeless", &nodeless, "\"encoder.layer.0.attention.self.query.weight\" is missing");
}

#[test]
fn a_directory_without_weights_names_both_files() {
    let dir = std::env::temp_dir().join(format!("helper-ai-onnx-{}-none", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(data("tiny-bert/config.json"), dir.join("config.json")).unwrap();
    let error = Model::load(&dir, 1).err().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(error.detail.unwrap().contains("model.safetensors: there is neither this file nor onnx/model.onnx"));
}

#[test]
fn a_path_before_every_name_is_left_out() {
    let prefixed = changed(|graph| {
        let rename = |name: &mut String| {
            if name.starts_with("em") || name.starts_with("en") {
                name.insert_str(0, "0.auto_model.");
            }
        };
        graph.initializer.iter_mut().for_each(|tensor| rename(&mut tensor.name));
        graph.node.iter_mut().for_each(|node| node.input.iter_mut().chain(&mut node.output).for_each(rename));
    });
    assert!(load("prefixed", &prefixed).is_ok());
}

#[test]
fn a_matrix_is_found_through_the_product_that_its_bias_is_added_to() {
    let constant =
        AttributeProto { name: "value".into(), t: Some(tensor("", &[2, 3], &[1.0; 6])), ..Default::default() };
    let perm = AttributeProto { name: "perm".into(), ints: vec![1, 0], ..Default::default() };
    let product = |matrix| vec![node("MatMul", &["x", matrix], "xm"), node("Add", &["xm", "layer.bias"], "y")];
    let gemm = || node("Gemm", &["x", "m", "layer.bias"], "y");
    // Each with the shape the matrix has as [out, in], and whether it lies there column by column.
    let cases = [
        ("product", product("m"), [2, 3], true),
        ("bias first", vec![node("MatMul", &["x", "m"], "xm"), node("Add", &["layer.bias", "xm"], "y")], [2, 3], true),
        ("gemm", vec![gemm()], [2, 3], true),
        ("gemm, transposed", vec![with(gemm(), transb(1))], [3, 2], false),
        (
            "through nodes",
            [product("t"), vec![node("Identity", &["m"], "i"), with(node("Transpose", &["i"], "t"), perm)]].concat(),
            [3, 2],
            false,
        ),
        ("constant", [product("c"), vec![with(node("Constant", &[], "c"), constant)]].concat(), [3, 2], true),
        ("twice", [product("m"), vec![node("Add", &["xm", "layer.bias"], "z")]].concat(), [2, 3], true),
    ];
    for (label, nodes, shape, flipped) in cases {
        let graph = graph(nodes, parts());
        let found = graph.tensor("layer.weight").unwrap();
        assert_eq!((&found.shape[..], found.flipped), (&shape[..], flipped), "{label}");
    }
}

#[test]
fn a_matrix_that_cannot_be_told_is_refused() {
    let other = || vec![node("MatMul", &["x", "n"], "xn"), node("Add", &["xn", "layer.bias"], "z")];
    let product = || vec![node("MatMul", &["x", "m"], "xm"), node("Add", &["xm", "layer.bias"], "y")];
    let alpha = AttributeProto { name: "alpha".into(), f: 0.5, ..Default::default() };
    let circle = vec![
        node("MatMul", &["x", "a"], "xa"),
        node("Add", &["xa", "layer.bias"], "y"),
        node("Identity", &["b"], "a"),
        node("Identity", &["a"], "b"),
    ];
    let cases = [
        ("shared bias", [product(), other()].concat(), "is not the only one"),
        ("scaled", vec![with(node("Gemm", &["x", "m", "layer.bias"], "y"), alpha)], "is not the only one"),
        ("circle", circle, "is missing"),
        ("no node", vec![], "is missing"),
        (
            "computed",
            [
                vec![node("MatMul", &["x", "q"], "xq"), node("Add", &["xq", "layer.bias"], "y")],
                vec![node("DequantizeLinear", &["m"], "q")],
            ]
            .concat(),
            "comes from DequantizeLinear",
        ),
    ];
    for (label, nodes, what) in cases {
        let error = graph(nodes, parts()).tensor("layer.weight").err().unwrap();
        assert!(error.contains("\"layer.weight\"") && error.contains(what), "{label}: {error}");
    }
}

#[test]
fn numbers_are_read_from_either_field_and_in_half_precision() {
    let listed = TensorProto {
        dims: vec![2],
        data_type: 1,
        float_data: vec![1.5, -2.0],
        name: "listed".into(),
        ..Default::default()
    };
    let half = TensorProto { data_type: 10, raw_data: vec![0, 0x3e, 0, 0xc0].into(), ..tensor("half", &[2], &[]) };
    let graph = graph(vec![], vec![listed, half, tensor("raw", &[2], &[1.5, -2.0])]);
    assert_eq!(graph.tensor("listed").unwrap().data, graph.tensor("raw").unwrap().data);
    let half = graph.tensor("half").unwrap();
    assert_eq!((half.dtype, &half.data[..]), (Dtype::F16, &[0, 0x3e, 0, 0xc0][..]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        if let Ok(graph) = Graph::read(bytes.into()) {
            let names: Vec<&str> = graph.names().collect();
            names.iter().for_each(|name| drop(graph.tensor(name)));
        }
    }

    #[test]
    fn a_cut_export_is_refused_and_a_changed_one_does_no_harm(
        end in 0_usize..130_000,
        changes in proptest::collection::vec((0_usize..137_000, any::<u8>()), 1..40),
    ) {
        let mut bytes = export();
        prop_assert!(Graph::read(bytes[..end].to_vec().into()).is_err());
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(graph) = Graph::read(bytes.into()) {
            let names: Vec<&str> = graph.names().collect();
            names.iter().for_each(|name| drop(graph.tensor(name)));
        }
    }
}
