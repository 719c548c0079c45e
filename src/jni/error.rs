//! From Rust errors and panics to Java exceptions: the one policy of every native that may throw.

use std::{any::Any, cell::RefCell};

use jni::{
    Env,
    errors::ErrorPolicy,
    jni_sig, jni_str,
    objects::{JThrowable, JValue},
};

use crate::error::Error;

/// Failure of a native.
pub(crate) enum NativeError {
    Engine(Error),
    Jni(jni::errors::Error),
}

impl From<Error> for NativeError {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl From<jni::errors::Error> for NativeError {
    fn from(error: jni::errors::Error) -> Self {
        Self::Jni(error)
    }
}

/// Throws `MoxException` for errors and panics.
pub(crate) struct ThrowMoxException;

impl<T: Default> ErrorPolicy<T, NativeError> for ThrowMoxException {
    type Captures<'local: 'native, 'native> = ();

    fn on_error<'local: 'native, 'native>(
        env: &mut Env<'local>,
        (): &mut (),
        error: NativeError,
    ) -> jni::errors::Result<T> {
        let error = match error {
            NativeError::Engine(error) => error,
            // An exception that Java itself threw goes on as it is.
            NativeError::Jni(jni::errors::Error::JavaException) => return Ok(T::default()),
            NativeError::Jni(jni::errors::Error::NullPtr(what)) => {
                Error::InvalidArgument(format!("{what}: an argument is null"))
            }
            NativeError::Jni(error) => Error::Internal(error.to_string()),
        };
        throw(env, &error)
    }

    fn on_panic<'local: 'native, 'native>(
        env: &mut Env<'local>,
        (): &mut (),
        payload: Box<dyn Any + Send>,
    ) -> jni::errors::Result<T> {
        throw(env, &Error::Internal(panic_message(&*payload).to_owned()))
    }
}

fn throw<T: Default>(env: &mut Env<'_>, error: &Error) -> jni::errors::Result<T> {
    if env.exception_check() {
        return Ok(T::default());
    }
    let message = env.new_string(error.to_string())?;
    let arguments = [JValue::Int(error.code()), JValue::Object(&message)];
    let class = jni_str!("com/alipay/sofa/registry/mox/MoxException");
    let exception = env.new_object(class, jni_sig!("(ILjava/lang/String;)V"), &arguments)?;
    let exception = env.cast_local::<JThrowable<'_>>(exception)?;
    // `throw` answers `JavaException` when it succeeded.
    match env.throw(exception) {
        Ok(()) | Err(jni::errors::Error::JavaException) => Ok(T::default()),
        Err(error) => Err(error),
    }
}

thread_local! {
    /// Why the last call of `apply` on this thread was refused.
    static LAST: RefCell<Option<Error>> = const { RefCell::new(None) };
}

/// Keeps an error of a native that only answers its code. Nothing is formatted before someone asks.
pub(crate) fn keep(error: Error) -> i32 {
    let code = error.code();
    LAST.set(Some(error));
    code
}

/// The text of the error that this thread kept last, once.
pub(crate) fn take_kept() -> Option<String> {
    LAST.take().map(|error| error.to_string())
}

pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

/// Panics go to the host's log with their place, instead of to its standard error.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|info| tracing::error!(event = "panic", "{info}")));
}
