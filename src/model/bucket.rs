//! Gradient buckets: contiguous ranges in the order in which gradients become ready, last layer first.

use crate::units::Bytes;

use super::Parameter;

/// Where each gradient lies: which bucket, and at which element of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketLayout {
    /// Buckets in the order in which they are filled by the backward pass.
    pub buckets: Vec<BucketPlan>,
    /// For each parameter, in forward order, its place.
    pub places: Vec<Place>,
}

/// One bucket: a contiguous range of gradients that is reduced in one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketPlan {
    /// Indices into the parameters (forward order), in the order of the bucket's memory.
    pub parameters: Vec<usize>,
    /// Elements of the bucket.
    pub elements: usize,
}

/// The place of one gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the bucket.
    pub bucket: usize,
    /// First element inside the bucket.
    pub offset: usize,
    /// Elements.
    pub elements: usize,
}

impl BucketLayout {
    /// Fills buckets with the gradients in reverse order of the forward pass. A bucket is closed once it
    /// holds at least `size` (the first one `first_size`), so that no tensor is split; a bucket is larger
    /// than asked where its last tensor is. `element` is the size of one gradient element.
    #[must_use]
    pub fn new(parameters: &[Parameter], first_size: Bytes, size: Bytes, element: Bytes) -> Self {
        let mut buckets: Vec<BucketPlan> = Vec::new();
        let mut places = vec![Place { bucket: 0, offset: 0, elements: 0 }; parameters.len()];
        let mut open = false;
        for index in (0..parameters.len()).rev() {
            if !open {
                buckets.push(BucketPlan { parameters: Vec::new(), elements: 0 });
            }
            let number = buckets.len() - 1;
            let limit = if number == 0 { first_size } else { size };
            let bucket = &mut buckets[number];
            let elements = parameters[index].elements();
            places[index] = Place { bucket: number, offset: bucket.elements, elements };
            bucket.parameters.push(index);
            bucket.elements += elements;
            open = (bucket.elements as u64) * element.0 < limit.0;
        }
        Self { buckets, places }
    }

    /// Elements of all buckets.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.elements).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::preset;

    #[test]
    fn every_gradient_has_one_place_and_the_head_leaves_first() {
        let parameters = preset("llama-15m").unwrap().shape.parameters();
        let layout = BucketLayout::new(&parameters, Bytes::mebi(1.0), Bytes::mebi(4.0), Bytes(4));
        let total: usize = parameters.iter().map(Parameter::elements).sum();
        assert_eq!(layout.elements(), total);
        assert_eq!(layout.buckets[0].parameters, vec![parameters.len() - 1]);
        assert!(layout.buckets.len() > 3);
        for (number, bucket) in layout.buckets.iter().enumerate() {
            let mut next = 0;
            for &index in &bucket.parameters {
                let place = layout.places[index];
                assert_eq!((place.bucket, place.offset), (number, next));
                next += parameters[index].elements();
            }
            assert_eq!(next, bucket.elements);
        }
    }

    #[test]
    fn one_huge_bucket_holds_everything() {
        let parameters = preset("llama-tiny").unwrap().shape.parameters();
        let layout = BucketLayout::new(&parameters, Bytes::mebi(1e6), Bytes::mebi(1e6), Bytes(4));
        assert_eq!(layout.buckets.len(), 1);
    }
}
