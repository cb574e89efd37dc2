"""Every exception and warning of hf_dumper, in one tree.

::

    HFDumperError
    ├── ConfigError (ValueError)            a DumpConfig that cannot be meant
    │   ├── NotYetError (NotImplementedError)   a documented option of a later release
    │   └── SelectionError                  a selection that matches nothing
    ├── ModelError (ValueError)             a model that cannot be loaded or dumped
    │   └── CompiledModelError              hooks would be skipped: the model is compiled
    ├── UnsupportedGenerationError (NotImplementedError)   the clock cannot follow this mode
    ├── CaptureError (RuntimeError)         a session used in a way that cannot be recorded
    ├── DumpError
    │   ├── DumpNotFoundError (FileNotFoundError)   no dump at this path
    │   ├── DumpFormatError (ValueError)    not a dump, damaged, or of an unknown version
    │   ├── DumpIdentityError (ValueError)  the folder holds a dump of something else
    │   ├── DumpWriteError (OSError)        the dump could not be written
    │   ├── EmptyDumpError                  nothing at all was captured
    │   └── KeyNotFoundError (KeyError)     no such run, token, module or slot in the dump
    ├── HubError                            a hub that does not give or take what it was asked for
    ├── PromptError (ValueError)            prompts that cannot be read
    └── LaunchError (RuntimeError)          another process of an `accelerate launch` failed

    DumpWarning (UserWarning)
    ├── DumpIncompleteWarning               a run whose dump is not whole, and why
    └── TokenNeverReachedWarning            token_range names tokens that were not generated
"""


class HFDumperError(Exception):
    """Base of every error that hf_dumper raises on purpose."""


class ConfigError(HFDumperError, ValueError):
    """A configuration that cannot be meant."""


class NotYetError(ConfigError, NotImplementedError):
    """An option that INTERFACE documents and a later release brings."""


class SelectionError(ConfigError):
    """A module, layer or device selection that matches nothing."""


class ModelError(HFDumperError, ValueError):
    """A model that cannot be loaded or cannot be dumped."""


class CompiledModelError(ModelError):
    """The model, or one of its layers, is compiled: torch would skip our hooks silently."""


class UnsupportedGenerationError(HFDumperError, NotImplementedError):
    """A way of generating whose token index the clock cannot know."""


class CaptureError(HFDumperError, RuntimeError):
    """A session was used in a way that cannot be recorded."""


class LaunchError(HFDumperError, RuntimeError):
    """Another process of the same `accelerate launch` failed, so this one cannot go on."""


class DumpError(HFDumperError):
    """Base of the errors about a dump on disk."""


class DumpNotFoundError(DumpError, FileNotFoundError):
    """There is no dump at the given path."""


class DumpFormatError(DumpError, ValueError):
    """The folder is no dump, is damaged, or has a format version this release cannot read."""


class DumpIdentityError(DumpError, ValueError):
    """The folder already holds a dump of another model or another configuration."""


class DumpWriteError(DumpError, OSError):
    """The dump could not be written."""


class EmptyDumpError(DumpError):
    """Nothing at all was captured."""


class KeyNotFoundError(DumpError, KeyError):
    """The dump holds no such run, token, module or slot."""

    def __str__(self) -> str:
        """Return the message itself; `KeyError` would show its repr."""
        return str(self.args[0]) if self.args else ""


class HubError(HFDumperError):
    """A hub does not give or take what it was asked for; the message says why in one line."""


class PromptError(HFDumperError, ValueError):
    """Prompts that cannot be read or understood."""


class DumpWarning(UserWarning):
    """Base of the warnings about a dump."""


class DumpIncompleteWarning(DumpWarning):
    """A run whose dump is not whole; the generation itself is unharmed."""


class TokenNeverReachedWarning(DumpWarning):
    """`token_range` names tokens that the generation did not reach."""
