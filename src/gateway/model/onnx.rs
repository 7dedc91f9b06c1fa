//! Weights from an exported graph.
//!
//! In: the bytes of `onnx/model.onnx`. Out: tensors by the names they had in the model that was exported. The graph is
//! never run: it is only followed to the weights of linear layers, which lose their names in an export. Whatever the
//! bytes hold, nothing here panics.
//!
//! The messages are those of the ONNX specification, cut down to the fields that are read.

use super::weights::Tensor;
use prost::Message;
use prost::bytes::Bytes;
use safetensors::Dtype;
use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, tag = "2")]
    f: f32,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(message, optional, tag = "5")]
    t: Option<TensorProto>,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(float, repeated, tag = "4")]
    float_data: Vec<f32>,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "bytes", tag = "9")]
    raw_data: Bytes,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

/// Tensors that are only renamed, cast or transposed again and again are followed no further than this.
const STEPS: usize = 8;

/// The matrix of a linear layer: where it is, and whether it lies there as `[in, out]`.
#[derive(Clone, PartialEq)]
struct Matrix {
    value: String,
    flipped: bool,
}

/// An exported graph's tensors, and how to get at them.
pub struct Graph {
    tensors: HashMap<String, TensorProto>,
    /// Each by its first output; another one is never a weight.
    nodes: HashMap<String, NodeProto>,
    /// By the name of the bias that is added to the product; `None` where several layers add it.
    matrices: HashMap<String, Option<Matrix>>,
}

impl Graph {
    /// Reads a graph; the tensors' bytes are not copied. Fails with what is wrong.
    pub fn read(bytes: Bytes) -> Result<Graph, String> {
        let model = ModelProto::decode(bytes).map_err(|error| error.to_string())?;
        let graph = model.graph.ok_or("it holds no graph")?;
        let mut tensors: HashMap<_, _> =
            graph.initializer.into_iter().map(|mut tensor| (std::mem::take(&mut tensor.name), tensor)).collect();
        let mut nodes = HashMap::with_capacity(graph.node.len());
        for mut node in graph.node {
            let Some(output) = node.output.first().cloned() else { continue };
            let value = if node.op_type == "Constant" { node.attribute.pop() } else { None };
            match value.and_then(|value| value.t) {
                Some(tensor) => drop(tensors.insert(output, tensor)),
                None => drop(nodes.insert(output, node)),
            }
        }
        let matrices = matrices(&nodes);
        Ok(Graph { tensors, nodes, matrices })
    }

    /// Everything that has a name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().chain(self.nodes.keys()).map(String::as_str)
    }

    /// The tensor that was called so before the export. Fails with what is wrong with it.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, String> {
        let bias = name.strip_suffix(".weight").map(|layer| format!("{layer}.bias"));
        // The graph goes first: where a matrix kept its name it may still lie there as [in, out].
        let (tensor, flipped) = match bias.as_ref().and_then(|bias| self.matrices.get(bias)) {
            Some(Some(matrix)) => {
                let (tensor, flipped) = self.find(&matrix.value, name)?;
                (tensor, flipped != matrix.flipped)
            }
            Some(None) => return Err(format!("tensor \"{name}\" is not the only one whose product gets its bias")),
            None => self.find(name, name)?,
        };
        if tensor.data_location != 0 {
            return Err(format!("tensor \"{name}\" is kept outside of the file, which is not supported"));
        }
        let (dtype, size) = match tensor.data_type {
            1 => (Dtype::F32, 4),
            10 => (Dtype::F16, 2),
            16 => (Dtype::BF16, 2),
            other => return Err(format!("tensor \"{name}\" is of data type {other}, expected float32 or float16")),
        };
        let shape = tensor.dims.iter().map(|&dimension| usize::try_from(dimension).ok()).collect::<Option<Vec<_>>>();
        let bytes = |shape: &Vec<usize>| shape.iter().try_fold(size, |bytes: usize, &side| bytes.checked_mul(side));
        let (mut shape, bytes) = shape
            .and_then(|shape| bytes(&shape).map(|bytes| (shape, bytes)))
            .ok_or_else(|| format!("tensor \"{name}\" has the impossible shape {:?}", tensor.dims))?;
        let data = if tensor.raw_data.is_empty() && dtype == Dtype::F32 {
            Cow::Owned(tensor.float_data.iter().flat_map(|value| value.to_le_bytes()).collect())
        } else {
            Cow::Borrowed(&tensor.raw_data[..])
        };
        if data.len() != bytes {
            return Err(format!("tensor \"{name}\" has {} bytes, expected {bytes}", data.len()));
        }
        if flipped {
            shape.reverse();
        }
        Ok(Tensor { shape, dtype, data, flipped })
    }

    /// The tensor behind a value, and whether it is transposed on the way; `name` is what the value is needed for.
    fn find(&self, value: &str, name: &str) -> Result<(&TensorProto, bool), String> {
        let (mut at, mut flipped) = (value, false);
        for _ in 0..STEPS {
            if let Some(tensor) = self.tensors.get(at) {
                return Ok((tensor, flipped));
            }
            let Some(node) = self.nodes.get(at) else { break };
            match node.op_type.as_str() {
                "Identity" | "Cast" => {}
                "Transpose" => match node.attribute("perm").map_or(&[1, 0][..], |perm| &perm.ints) {
                    [1, 0] => flipped = !flipped,
                    [0, 1] => {}
                    _ => break,
                },
                other => return Err(format!("tensor \"{name}\" comes from {other}, which is not supported")),
            }
            let Some(input) = node.input.first() else { break };
            at = input;
        }
        Err(format!("tensor \"{name}\" is missing"))
    }
}

/// The matrices of all linear layers that have a bias.
fn matrices(nodes: &HashMap<String, NodeProto>) -> HashMap<String, Option<Matrix>> {
    let mut found = HashMap::new();
    let mut add = |bias: &String, matrix: Option<Matrix>| match found.entry(bias.clone()) {
        Entry::Vacant(entry) => drop(entry.insert(matrix)),
        Entry::Occupied(entry) if *entry.get() == matrix => {}
        Entry::Occupied(mut entry) => drop(entry.insert(None)),
    };
    for node in nodes.values() {
        match (node.op_type.as_str(), &node.input[..]) {
            ("Add", [first, second]) => {
                for (bias, product) in [(first, second), (second, first)] {
                    let product = nodes.get(product).filter(|product| product.op_type == "MatMul");
                    if let Some(matrix) = product.and_then(|product| product.input.get(1)) {
                        add(bias, Some(Matrix { value: matrix.clone(), flipped: true }));
                    }
                }
            }
            ("Gemm", [_, matrix, bias]) => {
                let plain = ["alpha", "beta"].iter().all(|name| node.attribute(name).is_none_or(|x| x.f == 1.0));
                let flipped = node.attribute("transB").is_none_or(|attribute| attribute.i == 0);
                add(bias, plain.then(|| Matrix { value: matrix.clone(), flipped }));
            }
            _ => {}
        }
    }
    found
}

impl NodeProto {
    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name == name)
    }
}

#[cfg(test)]
mod tests;
