//! Matrix products in single precision, with what follows them folded in.
//!
//! In: rows of numbers and a [`Packed`] matrix, laid out once so that the inner loop reads it in one straight line.
//! Out: the product with a bias and, where asked for, GELU or a residual already applied. The vector instructions are
//! chosen when the program runs. Nothing here starts a thread.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp, SimdUnaryOp};
use rten_vecmath::Gelu;

/// Rows of the left side that are multiplied at once; with two vectors of columns their sums fill the registers.
const TILE: usize = 6;
/// Rows of a packed matrix that are read before the next panel: one panel of them stays in the first-level cache.
const DEPTH: usize = 384;
/// Rows of the left side that stay in the second-level cache while all panels pass by.
const ROWS: usize = 16 * TILE;

struct PanelWidth;

impl SimdOp for PanelWidth {
    type Output = usize;

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> usize {
        2 * isa.f32().len()
    }
}

/// A right side, cut into panels of columns as wide as two vectors, each panel row by row.
#[derive(Default)]
pub struct Packed {
    data: Vec<f32>,
    depth: usize,
    width: usize,
}

impl Packed {
    /// Lays out a matrix of `depth` rows and `width` columns.
    pub fn new(depth: usize, width: usize, at: impl Fn(usize, usize) -> f32) -> Packed {
        let mut packed = Packed::default();
        packed.fill(depth, width, at);
        packed
    }

    /// Lays out another matrix in the same memory.
    pub fn fill(&mut self, depth: usize, width: usize, at: impl Fn(usize, usize) -> f32) {
        let panel = PanelWidth.dispatch();
        (self.depth, self.width) = (depth, width);
        self.data.clear();
        self.data.reserve(depth * width.next_multiple_of(panel));
        for start in (0..depth).step_by(DEPTH) {
            for first in (0..width).step_by(panel) {
                let columns = panel.min(width - first);
                for row in start..depth.min(start + DEPTH) {
                    self.data.extend((first..first + columns).map(|column| at(row, column)));
                    self.data.extend(std::iter::repeat_n(0.0, panel - columns));
                }
            }
        }
    }
}

/// Rows that lie `stride` numbers apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The first row starts at 0.
    pub data: &'a [f32],
    /// From one row's start to the next.
    pub stride: usize,
    /// How many there are.
    pub count: usize,
}

/// What is done to a product besides adding the bias.
#[derive(Clone, Copy)]
pub enum Finish<'a> {
    /// Nothing.
    Plain,
    /// GELU in its exact form, with the error function.
    Gelu,
    /// A matrix laid out as the output is added.
    Add(&'a [f32]),
}

/// Writes `left × right + bias`, finished, to rows of `out` that lie `stride` numbers apart.
///
/// `bias` is empty or has one number for each column. Every row of `left` has at least as many numbers as `right` has rows.
/// `tiles` is memory that is kept from one call to the next.
pub fn multiply(
    left: Rows<'_>,
    right: &Packed,
    bias: &[f32],
    finish: Finish<'_>,
    out: &mut [f32],
    stride: usize,
    tiles: &mut Vec<f32>,
) {
    Multiply { left, right, bias, finish, out, stride, tiles }.dispatch();
}

struct Multiply<'a> {
    left: Rows<'a>,
    right: &'a Packed,
    bias: &'a [f32],
    finish: Finish<'a>,
    out: &'a mut [f32],
    stride: usize,
    /// Rows of the left side, in tiles of [`TILE`] rows, each tile column by column.
    tiles: &'a mut Vec<f32>,
}

impl SimdOp for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let Multiply { left, right, bias, finish, out, stride, tiles } = self;
        let ops = isa.f32();
        let lanes = ops.len();
        let panel = 2 * lanes;
        let load = |from: &[f32]| if from.len() == lanes { ops.load(from) } else { ops.load_pad(from).0 };
        let padded = right.width.next_multiple_of(panel);
        for block in (0..left.count).step_by(ROWS) {
            let block_end = left.count.min(block + ROWS);
            for start in (0..right.depth).step_by(DEPTH) {
                let depth = DEPTH.min(right.depth - start);
                let last = start + depth == right.depth;
                tiles.resize((block_end - block).next_multiple_of(TILE) * depth, 0.0);
                for (index, own) in tiles.chunks_exact_mut(depth * TILE).enumerate() {
                    // A tile that is not full repeats the last row; the copies are not stored.
                    let [r0, r1, r2, r3, r4, r5]: [&[f32]; TILE] = std::array::from_fn(|i| {
                        let row = (block + index * TILE + i).min(block_end - 1);
                        &left.data[row * left.stride + start..][..depth]
                    });
                    let rows = r0.iter().zip(r1).zip(r2).zip(r3).zip(r4).zip(r5);
                    for (to, (((((x0, x1), x2), x3), x4), x5)) in own.chunks_exact_mut(TILE).zip(rows) {
                        to.copy_from_slice(&[*x0, *x1, *x2, *x3, *x4, *x5]);
                    }
                }
                let panels = &right.data[start * padded..][..depth * padded];
                for (index, columns) in panels.chunks_exact(depth * panel).enumerate() {
                    let first = index * panel;
                    for (index, own) in tiles.chunks_exact(depth * TILE).enumerate() {
                        let tile = block + index * TILE;
                        let rows = TILE.min(block_end - tile);
                        let mut sums = [[ops.zero(); 2]; TILE];
                        for (x, b) in own.chunks_exact(TILE).zip(columns.chunks_exact(panel)) {
                            let b0 = ops.load(&b[..lanes]);
                            let b1 = ops.load(&b[lanes..]);
                            for i in 0..TILE {
                                let x = ops.splat(x[i]);
                                sums[i][0] = ops.mul_add(x, b0, sums[i][0]);
                                sums[i][1] = ops.mul_add(x, b1, sums[i][1]);
                            }
                        }
                        for (i, pair) in sums.iter().enumerate() {
                            if i >= rows {
                                break;
                            }
                            for (half, sum) in pair.iter().enumerate() {
                                let column = first + half * lanes;
                                let count = lanes.min(right.width.saturating_sub(column));
                                if count == 0 {
                                    continue;
                                }
                                let from = (tile + i) * stride + column;
                                let mut value = *sum;
                                if start > 0 {
                                    value = ops.add(value, load(&out[from..from + count]));
                                } else if !bias.is_empty() {
                                    value = ops.add(value, load(&bias[column..column + count]));
                                }
                                if last {
                                    value = match finish {
                                        Finish::Plain => value,
                                        Finish::Gelu => Gelu {}.eval(isa, value),
                                        Finish::Add(other) => ops.add(value, load(&other[from..from + count])),
                                    };
                                }
                                if count == lanes {
                                    ops.store(value, &mut out[from..from + lanes]);
                                } else {
                                    let mut whole = [0.0; 64];
                                    ops.store(value, &mut whole);
                                    out[from..from + count].copy_from_slice(&whole[..count]);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
