//! A copy out of the Java heap, without the cost of a managed environment.

use std::cell::RefCell;

use jni::sys::{JNIEnv, jbyteArray, jint};

use crate::{
    error::{Error, Result},
    registry::frame::MAX_FRAME,
};

/// A thread keeps its scratch up to this size.
const KEPT: usize = 1 << 20;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Copies the first `length` bytes of `array` and hands them to `use_bytes`.
///
/// # Safety
/// `env` is this thread's environment inside a native call, and `array` is null or a live reference to a byte array.
pub(crate) unsafe fn with_bytes<T>(
    env: *mut JNIEnv,
    array: jbyteArray,
    length: jint,
    use_bytes: impl FnOnce(&[u8]) -> Result<T>,
) -> Result<T> {
    if array.is_null() {
        return Err(Error::MalformedFrame { at: 0, what: "an array (it is null)" });
    }
    let wanted = usize::try_from(length).map_err(|_| Error::MalformedFrame { at: 0, what: "a length of 0 or more" })?;
    if wanted > MAX_FRAME {
        return Err(Error::TooLarge { field: "frame", actual: wanted, limit: MAX_FRAME });
    }
    if wanted == 0 {
        return Err(Error::MalformedFrame { at: 0, what: "a byte" });
    }
    SCRATCH.with_borrow_mut(|scratch| {
        // A frame starts with its format, which is never 0: if the array is shorter than it is said to be, the JVM writes
        // nothing and throws. Asking for its length first would cost one more call into the JVM.
        scratch.clear();
        scratch.reserve(wanted);
        scratch.push(0);
        // SAFETY: the caller vouches for `env`, whose function table belongs to the JVM and outlives the call, and for
        // `array`, which is not null. The JVM checks 0..length against the array and writes within the scratch's capacity.
        unsafe { ((**env).v1_1.GetByteArrayRegion)(env, array, 0, length, scratch.as_mut_ptr().cast()) };
        if scratch[0] == 0 {
            // SAFETY: as above; clearing is allowed at any time.
            unsafe { ((**env).v1_1.ExceptionClear)(env) };
            return Err(Error::MalformedFrame { at: 0, what: "a format, and a length within the array" });
        }
        // SAFETY: a written first byte means that the range was good, so the JVM wrote all of it.
        unsafe { scratch.set_len(wanted) };
        let result = use_bytes(scratch);
        if scratch.capacity() > KEPT {
            *scratch = Vec::new();
        }
        result
    })
}
