//! Weights as a file that PyTorch reads.

use std::borrow::Cow;
use std::cell::RefCell;
use std::path::Path;

use safetensors::{Dtype, View, serialize_to_file};

use crate::model::Parameter;

use super::error::TrainError;
use super::ops::Ops;
use super::trainer::Trainer;

/// One weight, read from the device when its turn comes, so that the host never holds them all.
struct Weight<'a, O: Ops> {
    trainer: &'a RefCell<&'a mut Trainer<O>>,
    /// The first weight that could not be read: a view cannot say so itself.
    failed: &'a RefCell<Option<TrainError>>,
    alive: &'a dyn Fn(),
    parameter: &'a Parameter,
    shape: Vec<usize>,
}

impl<O: Ops> View for Weight<'_, O> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (self.alive)();
        match self.trainer.borrow_mut().weight(self.parameter.role) {
            Ok(mut weight) => {
                weight.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().to_le()));
                bytemuck::cast_slice(&weight).to_vec().into()
            }
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error);
                vec![0; self.data_len()].into()
            }
        }
    }

    fn data_len(&self) -> usize {
        4 * self.parameter.elements()
    }
}

impl<O: Ops> Trainer<O> {
    /// Writes the weights as the optimizer keeps them, f32, as safetensors: matrices `[rows, columns]`, gains
    /// `[columns]`, under the names of [`Role`](crate::model::Role). `alive` is called before each weight: large models
    /// take minutes.
    ///
    /// # Errors
    /// The device failed, or the file could not be written.
    pub fn write_checkpoint(&mut self, path: &Path, alive: &dyn Fn()) -> Result<(), TrainError> {
        let parameters = self.config.shape.parameters();
        let (trainer, failed) = (RefCell::new(self), RefCell::new(None));
        let weights = parameters.iter().map(|parameter| {
            let Parameter { rows, columns, .. } = *parameter;
            let shape = if parameter.is_matrix() { vec![rows, columns] } else { vec![columns] };
            let (trainer, failed) = (&trainer, &failed);
            (parameter.role.to_string(), Weight { trainer, failed, alive, parameter, shape })
        });
        let written = serialize_to_file(weights, None, path);
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        written.map_err(|source| TrainError::Checkpoint { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{alone, tiny};

    #[test]
    fn a_checkpoint_holds_every_weight_under_its_name() {
        let config = tiny();
        let mut trainer = alone(&config);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint.safetensors");
        let asked = std::cell::Cell::new(0);
        trainer.write_checkpoint(&path, &|| asked.set(asked.get() + 1)).unwrap();
        assert_eq!(asked.get(), config.shape.parameters().len());
        let bytes = std::fs::read(&path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let parameters = config.shape.parameters();
        assert_eq!(tensors.len(), parameters.len());
        for parameter in parameters {
            let tensor = tensors.tensor(&parameter.role.to_string()).unwrap();
            assert_eq!(tensor.shape().iter().product::<usize>(), parameter.elements());
            let wanted = trainer.weight(parameter.role).unwrap();
            let got = tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
            assert!(got.eq(wanted), "{}", parameter.role);
        }
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_says_where() {
        let error = alone(&tiny()).write_checkpoint(Path::new("/proc/none/checkpoint"), &|| {}).unwrap_err();
        assert!(error.to_string().contains("/proc/none/checkpoint"), "{error}");
    }
}
