"""Repeated calls of ops without the Python that chose their launches, which takes longer than small maps on a GPU.

An op's body depends on its key alone: the sizes, strides, dtypes and alignment of its tensors, and its other arguments.
When a key occurs a second time, the body's calls of torch and its launches are recorded and written as a function
without branches, the program. Later calls with the key run the program.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from polychrome.kernels.backend import runs_triton
from polychrome.kernels.launch import Launch, current_stream, is_watched, listen
from polychrome.kernels.tensors import allows_tf32

# Keys that are kept at most; with more, all are forgotten.
MOST = 4096
# A compiled kernel may rely on pointers being a multiple of this.
ALIGNMENT = 16
# What stands for the program of a call that was made once, and of a call whose body cannot be repeated.
ONCE, NEVER = object(), object()
UNREPEATABLE = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}
aten = torch.ops.aten
# Made again by one function of torch's, which is called in a third of the time.
ALLOCATIONS = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)

Key = tuple
_programs: dict[Key, object] = {}
# Torch's modes must not be entered by two threads at once.
_recording = threading.Lock()
_plain_keys: set[int] = set()


def key_of(name: str, arguments: tuple) -> Key | None:
    """Return everything that the body of op `name` can see of a call except the values of its tensors.

    None where torch has to see the op itself: while a call is compiled, traced, transformed or watched, and for tensors
    that are not plain CPU or CUDA tensors, such as subclasses and negated views.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._are_functorch_transforms_active():
        return None
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return None
    if torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch):  # of modes not on the stack
        return None
    key = [name]
    for argument in arguments:
        kind = type(argument)
        if kind is Tensor or kind is torch.nn.Parameter:
            keys = torch._C._dispatch_keys(argument).raw_repr()
            if keys not in _plain_keys and not _is_plain(argument, keys):
                return None
            memory = argument.device, argument.data_ptr() % ALIGNMENT
            key.append((argument.shape, argument.stride(), argument.dtype, memory))
        elif isinstance(argument, Tensor):
            return None
        else:
            key.append(tuple(argument) if kind is list else argument)
    key.append(arguments[0].dtype is torch.float32 and allows_tf32())
    return tuple(key)


def run(body: Callable, key: Key, arguments: tuple):
    """Return `body(*arguments)`: from the third call of a key on by the program that the second call has written.

    The last argument is the op's backend. Where something watches launches, the body makes them every time.
    """
    programs = _programs
    program = programs.get(key)
    if program is None:
        if len(programs) >= MOST:
            programs.clear()
        programs[key] = ONCE if runs_triton(arguments[0], arguments[-1]) else NEVER
    if program in (None, NEVER) or is_watched():
        return body(*arguments)
    if program is not ONCE:
        return program(*arguments)
    if not _recording.acquire(blocking=False):
        return body(*arguments)
    try:
        result, program = record(body, arguments)
    finally:
        _recording.release()
    programs[key] = program or NEVER
    return result


def forget() -> None:
    """Forget all programs, which keep the launches that were chosen before a table or a rule was changed."""
    global _programs
    _programs = {}  # a thread that records meanwhile writes into the old one


def record(body: Callable, arguments: tuple) -> tuple[object, Callable | None]:
    """Return `body(*arguments)`, and a function that repeats the body for other arguments of the same key.

    The function is None for a body that reads a tensor's values, draws random numbers, uses a tensor that is not an
    argument, or launches nothing. Two threads must not record at once.
    """
    recorder = Recorder(arguments)
    with recorder, listen(recorder.launched):
        result = body(*arguments)
    return result, recorder.program(result)


def _is_plain(tensor: Tensor, keys: int) -> bool:
    """Return whether a tensor with these dispatch keys is plain memory, made in inference mode or not.

    Its keys are remembered if it is.
    """
    if tensor.device.type not in ("cpu", "cuda"):
        return False
    for inside in (False, True):
        with torch.inference_mode(inside):
            plain = torch.empty(0, device=tensor.device)
        _plain_keys.add(torch._C._dispatch_keys(plain).raw_repr())
    return keys in _plain_keys


class Step(NamedTuple):
    """A line of a program, the names of the tensors that it reads, and the names of the tensors that it makes.

    can_be_left_out: where no later line needs the tensors that it makes.
    """

    line: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    can_be_left_out: bool = False


class Unrepeatable(Exception):
    """A call is not repeatable, or uses a tensor that is neither an argument nor made from arguments."""


class Recorder(TorchDispatchMode):
    """Makes and records calls of torch inside, and the launches reported by `launched`."""

    def __init__(self, arguments: tuple):
        super().__init__()
        self.names = WeakTensorKeyDictionary()
        self.roots: dict[str, tuple[str, int]] = {}  # of a view: in whose memory it lies, and how far from its first
        self.fresh: set[str] = set()  # begin where their memory does
        self.constants: dict[str, object] = {}
        self.steps: list[Step] = []
        self.has_launched, self.can_be_repeated = False, True
        self.made, self.stream = 0, "pass"
        self.parameters = [f"given{place}" for place in range(len(arguments))]
        tensors = {name: each for name, each in zip(self.parameters, arguments, strict=True) if _is_tensor(each)}
        self.names.update({each: name for name, each in tensors.items()})
        if len(self.names) < len(tensors):  # one tensor given twice may be two the next time
            self.can_be_repeated = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to be skipped it would be imported, which takes over a second

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        self._note(self._called, op, args, kwargs, result)
        return result

    def launched(self, launch: Launch, compiled) -> None:
        """Note a launch, and the kernel that it was compiled to where it was."""
        self.has_launched = True
        self._note(self._launched, launch, compiled)

    def program(self, result) -> Callable | None:
        """Return the function that repeats the recorded body and returns the same kind of result."""
        made = result if isinstance(result, tuple) else [result]
        if not self.can_be_repeated or not self.has_launched or any(each not in self.names for each in made):
            return None
        outputs = [self.names[each] for each in made]
        lines, needed = [f"return {', '.join(outputs)}"], {*outputs, *self.parameters}
        for step in reversed(self.steps):
            if step.can_be_left_out and needed.isdisjoint(step.writes):
                continue
            used = [name for name in dict.fromkeys((*step.reads, *step.writes)) if name not in needed]
            if used:  # for the last time: its memory is free from here on
                lines.append(f"del {', '.join(used)}")
            lines.append(step.line)
            needed.update(used)
        lines += [self.stream, f"def program({', '.join(self.parameters)}):"]
        source = "\n    ".join(reversed(lines))
        scope = dict(self.constants)
        exec(source, scope)
        return scope["program"]

    def _note(self, note: Callable, *happened) -> None:
        if self.can_be_repeated:
            try:
                note(*happened)
            except Unrepeatable:
                self.can_be_repeated = False

    def _called(self, op, args, kwargs, result) -> None:
        made = result if isinstance(result, tuple | list) else [result]
        if not all(map(_is_tensor, made)) or not UNREPEATABLE.isdisjoint(op.tags):
            raise Unrepeatable
        reads: list[str] = []
        given = [self._text(each, reads) for each in args]
        given += [f"{name}={self._text(each, reads)}" for name, each in kwargs.items()]
        mutates = op._schema.is_mutable
        bases = {} if mutates else {_memory(each): each for each in reversed(args) if _is_tensor(each)}
        new = [each for each in made if each not in self.names]
        if not mutates and (not new or _memory(new[0]) in bases):
            for each in new:
                self._viewed(each, bases.get(_memory(each)))
            return
        writes = [self._name(each) for each in made]
        if not mutates and op.overloadpacket in ALLOCATIONS:
            (one,) = made
            like = f"{tuple(one.shape)}, {one.stride()}, dtype={self._text(one.dtype)}, device={self._text(one.device)}"
            line = f"{writes[0]} = {self._text(torch.empty_strided)}({like})"
            self.steps.append(Step(line, (), tuple(writes), can_be_left_out=True))
            self.fresh.update(writes)
            return
        targets = f"{', '.join(writes)}{',' * (made is result)}"
        line = f"{targets} = {self._text(op)}({', '.join(given)})"
        self.steps.append(Step(line, tuple(reads), tuple(writes), can_be_left_out=not mutates))

    def _viewed(self, view: Tensor, base: Tensor | None) -> None:
        """Record a view as a view of the tensor that owns its memory."""
        if base is None or view.dtype != base.dtype:
            raise Unrepeatable
        name = self.names[base]
        if _layout(view) == _layout(base):
            self.names[view] = name
            return
        root, offset = self.roots.get(name, (name, 0))
        offset += view.storage_offset() - base.storage_offset()
        made = self._name(view)
        self.roots[made] = root, offset
        start = f"{offset}" if root in self.fresh else f"{root}.storage_offset() + {offset}"
        line = f"{made} = {root}.as_strided({tuple(view.shape)}, {view.stride()}, {start})"
        self.steps.append(Step(line, (root,), (made,), can_be_left_out=True))

    def _launched(self, launch: Launch, compiled) -> None:
        reads: list[str] = []
        if compiled is None:
            start = partial(launch.kernel[launch.grid], **launch.options)
            given = [self._text(each, reads) for each in launch.arguments]
        else:
            start = compiled.run
            self._text(compiled)  # is unloaded with the last that holds it
            self.stream = f"stream = {self._text(current_stream())}({launch.device.index})"
            before, after = launch.passed(compiled)
            given = [*map(str, before), "stream", *(self._text(each, reads) for each in after)]
        self.steps.append(Step(f"{self._text(start)}({', '.join(given)})", tuple(reads), ()))

    def _name(self, tensor: Tensor) -> str:
        if tensor not in self.names:
            self.made += 1
            self.names[tensor] = f"made{self.made}"
        return self.names[tensor]

    def _text(self, value, reads: list[str] | None = None) -> str:
        """Return the source text of `value` in a line, and add the names of its tensors to `reads`."""
        if _is_tensor(value):
            if value not in self.names:
                raise Unrepeatable
            reads.append(self.names[value])
            return reads[-1]
        if isinstance(value, tuple) and any(map(_is_tensor, value)):
            raise Unrepeatable
        if type(value) is list:
            return f"[{', '.join(self._text(each, reads) for each in value)}]"
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        name = f"fixed{len(self.constants)}"
        self.constants[name] = value
        return name


def _is_tensor(value) -> bool:
    return isinstance(value, Tensor)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _layout(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.stride(), tensor.storage_offset()
