//! Matrix products by cuBLASLt: every candidate that its heuristics name is timed once on the real operands, and the
//! fastest is kept, also for later starts.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::Seconds;

use super::cache::{Cache, key};
use super::driver::{Gpu, Handle};
use super::error::CudaError;
use super::library::{Wanted, functions};
use super::memory::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Element};
use super::stream::{Events, Stream};

pub(super) const CUBLASLT: Wanted = Wanted {
    name: "cuBLASLt",
    file: "libcublasLt.so.13",
    companions: "",
    packages: &["cu13", "cublas"],
    install: "install CUDA's cuBLAS for your driver: pip install nvidia-cublas, or NVIDIA's libcublas-13-0",
};

/// The same, for a driver that does not serve CUDA 13 yet.
pub(super) const CUBLASLT_12: Wanted = Wanted { file: "libcublasLt.so.12", packages: &["cublas"], ..CUBLASLT };

/// Working memory: what NVIDIA recommends for Hopper (cuBLAS documentation, `cublasSetWorkspace`), ample elsewhere. The
/// memory plan names the same number.
pub const PRODUCT_WORKSPACE: u64 = 32 << 20;

/// Candidates asked for; the heuristics name fewer for most shapes.
const CANDIDATES: usize = 24;
/// Of those, the fastest of one run are timed again.
const FINALISTS: usize = 4;
/// Runs of a finalist; the median counts.
const RUNS: usize = 5;

functions! {
    /// The functions of cuBLASLt that rigscale calls (`cublasLt.h`).
    Functions {
        fn cublasLtGetVersion() -> usize;
        fn cublasLtGetCudartVersion() -> usize;
        fn cublasLtGetStatusString(i32) -> *const c_char;
        fn cublasLtCreate(*mut Handle) -> i32;
        fn cublasLtDestroy(Handle) -> i32;
        fn cublasLtMatmulDescCreate(*mut Handle, i32, i32) -> i32;
        fn cublasLtMatmulDescSetAttribute(Handle, i32, *const c_void, usize) -> i32;
        fn cublasLtMatmulDescDestroy(Handle) -> i32;
        fn cublasLtMatrixLayoutCreate(*mut Handle, i32, u64, u64, i64) -> i32;
        fn cublasLtMatrixLayoutDestroy(Handle) -> i32;
        fn cublasLtMatmulPreferenceCreate(*mut Handle) -> i32;
        fn cublasLtMatmulPreferenceSetAttribute(Handle, i32, *const c_void, usize) -> i32;
        fn cublasLtMatmulPreferenceDestroy(Handle) -> i32;
        fn cublasLtMatmulAlgoGetHeuristic(
            Handle, Handle, Handle, Handle, Handle, Handle, Handle, i32, *mut Candidate, *mut i32
        ) -> i32;
        fn cublasLtMatmulAlgoCheck(
            Handle, Handle, Handle, Handle, Handle, Handle, *const [u64; 8], *mut Candidate
        ) -> i32;
        fn cublasLtMatmul(
            Handle, Handle, *const c_void, u64, Handle, u64, Handle, *const c_void, u64, Handle, u64, Handle,
            *const [u64; 8], u64, usize, Handle
        ) -> i32;
    }
}

// Values of cublasLt.h and library_types.h
const COMPUTE_32F: i32 = 68;
const REAL_32F: i32 = 0;
const REAL_16BF: i32 = 14;
const TRANSPOSE_A: i32 = 3;
const TRANSPOSE_B: i32 = 4;
const OPERATION_T: i32 = 1;
const MAX_WORKSPACE: i32 = 1;
const REDUCTION_SCHEMES: i32 = 3;
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: where a product is split, its parts are added in f32, not in bf16.
const IN_COMPUTE_TYPE: u32 = 2;

/// Changes where choices of older versions must not be taken.
const FORMAT: &str = "2";

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Candidate {
    algorithm: [u64; 8],
    workspace: usize,
    state: i32,
    waves: f32,
    reserved: [i32; 4],
}

/// `a[R, K] · b[K, C]`, row-major, bf16, summed in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Product {
    /// `R`
    pub rows: usize,
    /// `C`
    pub columns: usize,
    /// `K`
    pub inner: usize,
    /// `a` lies as `[K, R]`.
    pub a_transposed: bool,
    /// `b` lies as `[C, K]`.
    pub b_transposed: bool,
}

impl Product {
    /// Multiplications and additions.
    #[must_use]
    pub fn flops(&self) -> f64 {
        2.0 * self.rows as f64 * self.columns as f64 * self.inner as f64
    }
}

/// What is added to a product before it is rounded.
#[derive(Debug, Clone, Copy)]
pub enum Addend<'a> {
    /// Nothing: it overwrites.
    Nothing,
    /// What stands at its destination.
    Destination,
    /// Another matrix `[R, C]`, apart from the destination.
    Other(DeviceSlice<'a>),
}

/// The kind of an [`Addend`]: which matrices are read and written decides which algorithm is the fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Adds {
    Nothing,
    Destination,
    Other,
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Choice {
    algorithm: [u64; 8],
    workspace: usize,
    /// Time of one run when it was chosen.
    seconds: f64,
}

/// cuBLASLt on one stream, with the choices made so far.
pub struct Products {
    functions: Functions,
    handle: Handle,
    workspace: DeviceBuffer,
    plans: BTreeMap<(Product, Adds), Plan>,
    /// What was chosen by timing, never for [`Adds::Destination`].
    choices: Vec<((Product, Adds), Choice)>,
    /// Choices of an earlier start, of the same GPU model and library.
    file: String,
    unsaved: bool,
    events: Events,
}

impl fmt::Debug for Products {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Products({} plans)", self.plans.len())
    }
}

/// A product with its descriptors, which `Products` destroys.
#[derive(Debug, Clone, Copy)]
struct Plan {
    operation: Handle,
    a: Handle,
    b: Handle,
    out: Handle,
    choice: Choice,
}

impl Products {
    /// Loads cuBLASLt; `workspace` holds [`PRODUCT_WORKSPACE`] bytes.
    ///
    /// # Errors
    /// The library is missing, damaged, or needs a newer driver.
    pub fn load(gpu: &Gpu, workspace: DeviceBuffer, cache: &mut Cache) -> Result<Self, CudaError> {
        assert!(PRODUCT_WORKSPACE <= workspace.len() as u64, "{workspace:?} for matrix products");
        let functions = Functions::load(if gpu.serves_13() { CUBLASLT } else { CUBLASLT_12 })?;
        // SAFETY: both take nothing
        let (version, built_for) =
            unsafe { ((functions.cublasLtGetVersion)(), (functions.cublasLtGetCudartVersion)()) };
        gpu.serves(&functions.library, i32::try_from(built_for).unwrap_or(0), &version.to_string())?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle, which `Drop` destroys
        let code = unsafe { (functions.cublasLtCreate)(&raw mut handle) };
        check(&functions, code, || "start cuBLASLt".into())?;
        let file = format!("products-{}", key(&[gpu.name(), &gpu.architecture(), &version.to_string(), FORMAT]));
        let choices = cache.read(&file).and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let (plans, events) = (BTreeMap::new(), Events::default());
        Ok(Self { functions, handle, workspace, plans, choices, file, unsaved: false, events })
    }

    /// Its version, as the library writes it: 130100 is 13.1.0.
    #[must_use]
    pub fn version(&self) -> String {
        // SAFETY: takes nothing
        let version = unsafe { (self.functions.cublasLtGetVersion)() };
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// Keeps the choices for later starts, where any is new.
    pub fn save(&mut self, cache: &mut Cache) {
        if std::mem::take(&mut self.unsaved)
            && let Ok(bytes) = serde_json::to_vec(&self.choices)
        {
            cache.write(&self.file, &bytes);
        }
    }

    /// `out[R, C]` becomes a product and what is added to it. The first time for a shape and a kind of addend, candidates
    /// are timed with these operands.
    ///
    /// # Errors
    /// cuBLASLt failed, or has no algorithm for the shape.
    ///
    /// # Panics
    /// If an operand is no bf16 or too short, or another addend is the destination: a bug of the caller.
    pub fn multiply(
        &mut self,
        stream: &Stream,
        product: Product,
        mut out: DeviceSliceMut<'_>,
        addend: Addend<'_>,
        a: DeviceSlice<'_>,
        b: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        let Product { rows, columns, inner, .. } = product;
        let out = out.holding(rows * columns, Element::Bf16);
        let (adds, addend) = match addend {
            Addend::Nothing => (Adds::Nothing, out),
            Addend::Destination => (Adds::Destination, out),
            Addend::Other(other) => (Adds::Other, other.holding(rows * columns, Element::Bf16)),
        };
        // timing runs a product many times over
        assert!(adds != Adds::Other || addend != out, "the addend of {product:?} is its destination");
        let a = a.holding(rows * inner, Element::Bf16);
        let b = b.holding(inner * columns, Element::Bf16);
        let operands = Operands { out, adds, addend, a, b };
        let plan = match self.plans.get(&(product, adds)) {
            Some(plan) => *plan,
            None => self.plan(stream, product, operands)?,
        };
        self.run(stream, &plan, &plan.choice, operands)
    }

    /// Makes the plan of a shape and a kind of addend; by timing, if no earlier start has chosen.
    fn plan(&mut self, stream: &Stream, product: Product, operands: Operands) -> Result<Plan, CudaError> {
        let mut plan = self.describe(product)?;
        let key = (product, operands.adds);
        // timing would add the product to its destination many times over: what overwrites the same place stands in
        let timed = if operands.adds == Adds::Destination { (product, Adds::Nothing) } else { key };
        let known = self.choices.iter().find(|(known, _)| *known == timed).map(|(_, choice)| *choice);
        match known.filter(|choice| self.still_good(&plan, choice)) {
            Some(choice) => plan.choice = choice,
            None if timed != key => plan.choice = self.candidates(&plan, product)?[0],
            None => {
                let candidates = self.candidates(&plan, product)?;
                plan.choice = self.fastest(stream, &plan, candidates, operands)?;
                self.choices.retain(|(other, _)| *other != key);
                self.choices.push((key, plan.choice));
                self.unsaved = true;
            }
        }
        self.plans.insert(key, plan);
        Ok(plan)
    }

    /// The descriptors of a product. cuBLASLt thinks in columns, so it is asked for the transposed product.
    fn describe(&self, product: Product) -> Result<Plan, CudaError> {
        let Product { rows, columns, inner, a_transposed, b_transposed } = product;
        let functions = &self.functions;
        let mut operation = std::ptr::null_mut();
        // SAFETY: writes one handle
        let code = unsafe { (functions.cublasLtMatmulDescCreate)(&raw mut operation, COMPUTE_32F, REAL_32F) };
        check(functions, code, || "describe a matrix product".into())?;
        for (attribute, transposed) in [(TRANSPOSE_A, b_transposed), (TRANSPOSE_B, a_transposed)] {
            let value = if transposed { OPERATION_T } else { 0 };
            let (pointer, size) = ((&raw const value).cast(), size_of::<i32>());
            // SAFETY: reads one 32-bit integer, as both attributes are
            let code = unsafe { (functions.cublasLtMatmulDescSetAttribute)(operation, attribute, pointer, size) };
            check(functions, code, || "describe a matrix product".into())?;
        }
        let a = if a_transposed { self.layout(rows, inner)? } else { self.layout(inner, rows)? };
        let b = if b_transposed { self.layout(inner, columns)? } else { self.layout(columns, inner)? };
        let out = self.layout(columns, rows)?;
        Ok(Plan { operation, a, b, out, choice: Choice { algorithm: [0; 8], workspace: 0, seconds: 0.0 } })
    }

    /// A bf16 matrix of whole columns.
    fn layout(&self, rows: usize, columns: usize) -> Result<Handle, CudaError> {
        let mut layout = std::ptr::null_mut();
        let (r, c) = (rows as u64, columns as u64);
        // SAFETY: writes one handle
        let code = unsafe {
            (self.functions.cublasLtMatrixLayoutCreate)(&raw mut layout, REAL_16BF, r, c, rows.cast_signed() as i64)
        };
        check(&self.functions, code, || format!("describe a matrix of {rows} × {columns}"))?;
        Ok(layout)
    }

    /// What the heuristics name, best guess first.
    fn candidates(&self, plan: &Plan, product: Product) -> Result<Vec<Choice>, CudaError> {
        let functions = &self.functions;
        let mut preference = std::ptr::null_mut();
        // SAFETY: writes one handle, destroyed below
        let code = unsafe { (functions.cublasLtMatmulPreferenceCreate)(&raw mut preference) };
        check(functions, code, || "ask for algorithms".into())?;
        let limit = PRODUCT_WORKSPACE;
        let (pointer, size) = ((&raw const limit).cast(), size_of::<u64>());
        let set = functions.cublasLtMatmulPreferenceSetAttribute;
        // SAFETY: reads one 64-bit integer, as the attribute is
        let limited = unsafe { set(preference, MAX_WORKSPACE, pointer, size) };
        let schemes = IN_COMPUTE_TYPE;
        let (pointer, size) = ((&raw const schemes).cast(), size_of::<u32>());
        // SAFETY: reads one 32-bit integer, as the attribute is
        let masked = unsafe { set(preference, REDUCTION_SCHEMES, pointer, size) };
        let mut found = [Candidate::default(); CANDIDATES];
        let mut count = 0;
        let Plan { operation, a, b, out, .. } = *plan;
        let (results, wanted) = (found.as_mut_ptr(), CANDIDATES as i32);
        // SAFETY: writes at most as many results as it is told; every handle lives
        let asked = unsafe {
            (functions.cublasLtMatmulAlgoGetHeuristic)(
                self.handle,
                operation,
                b,
                a,
                out,
                out,
                preference,
                wanted,
                results,
                &raw mut count,
            )
        };
        // SAFETY: made above, used no more
        let _unneeded = unsafe { (functions.cublasLtMatmulPreferenceDestroy)(preference) };
        check(functions, limited, || "limit the workspace".into())?;
        check(functions, masked, || "ask for sums in f32".into())?;
        let sizes = || format!("{product:?}");
        check(functions, asked, || format!("find algorithms for {}", sizes()))?;
        let good = found[..count.clamp(0, wanted) as usize].iter().filter(|candidate| candidate.state == 0);
        let choices: Vec<Choice> = good
            .map(|candidate| Choice { algorithm: candidate.algorithm, workspace: candidate.workspace, seconds: 0.0 })
            .collect();
        if choices.is_empty() {
            return Err(CudaError::Unserved { operation: "matrix products", sizes: sizes() });
        }
        Ok(choices)
    }

    /// True if the library takes a choice of an earlier start.
    fn still_good(&self, plan: &Plan, choice: &Choice) -> bool {
        let mut result = Candidate::default();
        let Plan { operation, a, b, out, .. } = *plan;
        // SAFETY: reads one algorithm, writes one result; every handle lives
        let code = unsafe {
            (self.functions.cublasLtMatmulAlgoCheck)(
                self.handle,
                operation,
                b,
                a,
                out,
                out,
                &raw const choice.algorithm,
                &raw mut result,
            )
        };
        code == 0 && result.state == 0 && result.workspace as u64 <= PRODUCT_WORKSPACE
    }

    /// Times candidates; those that fail are left out.
    fn fastest(
        &mut self,
        stream: &Stream,
        plan: &Plan,
        candidates: Vec<Choice>,
        operands: Operands,
    ) -> Result<Choice, CudaError> {
        let first = candidates[0];
        let mut timed = Vec::new();
        for candidate in candidates {
            if self.run(stream, plan, &candidate, operands).is_ok() {
                let seconds = self.time(stream, plan, &candidate, operands)?.0;
                timed.push(Choice { seconds, ..candidate });
            }
        }
        timed.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
        // the heuristics' own choice is timed again whatever its first run said: the GPU may just have woken up
        let favourite = timed.iter().skip(FINALISTS).find(|choice| choice.algorithm == first.algorithm).copied();
        timed.truncate(FINALISTS);
        timed.extend(favourite);
        for choice in &mut timed {
            let mut runs = Vec::with_capacity(RUNS);
            for _ in 0..RUNS {
                runs.push(self.time(stream, plan, choice, operands)?.0);
            }
            runs.sort_by(f64::total_cmp);
            choice.seconds = runs[RUNS / 2];
        }
        let best = timed.into_iter().min_by(|one, other| one.seconds.total_cmp(&other.seconds));
        Ok(best.unwrap_or(first))
    }

    fn time(
        &mut self,
        stream: &Stream,
        plan: &Plan,
        choice: &Choice,
        operands: Operands,
    ) -> Result<Seconds, CudaError> {
        let begin = self.events.record(stream)?;
        self.run(stream, plan, choice, operands)?;
        self.events.record(stream)?.since(&begin)
    }

    fn run(&self, stream: &Stream, plan: &Plan, choice: &Choice, operands: Operands) -> Result<(), CudaError> {
        let (alpha, beta) = (1.0_f32, if operands.adds == Adds::Nothing { 0.0_f32 } else { 1.0 });
        let Plan { operation, a, b, out, .. } = *plan;
        let workspace = self.workspace.all().address;
        // SAFETY: operands were checked to hold the matrices that the plan describes, the workspace to be as large as
        // every candidate may ask for; scalars are read before the call returns
        let code = unsafe {
            (self.functions.cublasLtMatmul)(
                self.handle,
                operation,
                (&raw const alpha).cast(),
                operands.b,
                b,
                operands.a,
                a,
                (&raw const beta).cast(),
                operands.addend,
                out,
                operands.out,
                out,
                &raw const choice.algorithm,
                workspace,
                choice.workspace,
                stream.handle(),
            )
        };
        check(&self.functions, code, || "multiply matrices".into())
    }
}

/// Addresses of a product's matrices.
#[derive(Debug, Clone, Copy)]
struct Operands {
    out: u64,
    adds: Adds,
    /// What is added; `out` where that is nothing, or what stands there.
    addend: u64,
    a: u64,
    b: u64,
}

fn check(functions: &Functions, code: i32, attempt: impl FnOnce() -> String) -> Result<(), CudaError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: returns a string of the library that is never freed
    let text = unsafe { CStr::from_ptr((functions.cublasLtGetStatusString)(code)) }.to_string_lossy().into_owned();
    Err(CudaError::Call { attempt: attempt(), library: "cuBLASLt", code, text })
}

impl Drop for Products {
    fn drop(&mut self) {
        let functions = &self.functions;
        for Plan { operation, a, b, out, .. } in self.plans.values() {
            for layout in [a, b, out] {
                // SAFETY: made once and destroyed once
                let _at_exit = unsafe { (functions.cublasLtMatrixLayoutDestroy)(*layout) };
            }
            // SAFETY: as above
            let _at_exit = unsafe { (functions.cublasLtMatmulDescDestroy)(*operation) };
        }
        // SAFETY: made once and destroyed once
        let _at_exit = unsafe { (functions.cublasLtDestroy)(self.handle) };
    }
}
