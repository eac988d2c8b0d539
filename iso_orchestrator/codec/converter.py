"""The cattrs converter for users' values: strict, so that a value comes back as it was, or is refused.

The hooks of cattrs are lenient. They take a str for a list of str, a subclass for its base (and drop the fields that it
adds), a tuple with a missing end. The hooks here check the type of each value, in both directions.
"""

from __future__ import annotations

import copy
import datetime as dt
import threading
from _thread import start_new_thread
from base64 import b85decode
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Mapping, MutableSequence, Sequence, Set
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
)
from uuid import UUID
from zoneinfo import ZoneInfo

from cattrs import transform_error
from cattrs.cols import iterable_unstructure_factory, list_structure_factory
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, make_hetero_tuple_unstructure_fn
from cattrs.gen.typeddicts import make_dict_structure_fn as make_typeddict_dict_structure_fn
from cattrs.gen.typeddicts import make_dict_unstructure_fn as make_typeddict_dict_unstructure_fn
from cattrs.preconf.json import make_converter

from iso_orchestrator.codec.annotations import (
    fields_class,
    is_keyed_mapping,
    is_record,
    is_typed_dict,
    key_and_value,
    parts_of,
    resolved_typed_dict,
    tuple_of,
    undefined,
)
from iso_orchestrator.codec.json import SCALAR_HOOKS, decode, encode, to_json
from iso_orchestrator.codec.objects import is_named_tuple, is_pydantic, shown
from iso_orchestrator.notes import message_of
from iso_orchestrator.record.model import Json

T = TypeVar("T")


def first_reason(error: Exception) -> tuple[str, str]:
    """The place in a value where the converter failed, and the reason."""
    place = transform_error(error)[0].rpartition(" @ ")[2]
    innermost: BaseException = error
    while isinstance(innermost, BaseExceptionGroup):
        innermost = innermost.exceptions[0]
    reason = f"{type(innermost).__name__}: {message_of(innermost)}"
    return (place if place.startswith("$") else "$"), reason


def check_parts(kind: Any, checked: set[Any]) -> None:
    """Raise where a part of a type cannot be written or read.

    cattrs asks for the hooks of some parts when the first value is there, which is too late.
    """
    is_late = is_keyed_mapping(kind) or get_origin(kind) in (Union, UnionType) or hasattr(kind, "__supertype__")
    for part in parts_of(kind):
        if part in checked or part is ... or isinstance(part, TypeVar):
            continue
        checked.add(part)
        if is_late and not getattr(part, "__parameters__", ()):
            converter.get_unstructure_hook(part)
            converter.get_structure_hook(part)
        check_parts(part, checked)


def _refuse_unless(fits: bool, kind: Any, value: object) -> None:
    if not fits:
        raise TypeError(f"{getattr(kind, '__name__', kind)} expected, not {type(value).__name__}: {shown(value)}")


def _is_items(kind: Any) -> bool:
    """Whether *kind* is a collection of any length with items of one type."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin is tuple:
        return not args or (len(args) == 2 and args[1] is ...)
    return origin in _MADE_OF_ITEMS


def _write_items(kind: Any) -> Callable[[Any], Any]:
    write = iterable_unstructure_factory(kind, converter, unstructure_to=list)

    def checked(items: Any) -> Any:
        _refuse_unless(type(items) is list or not isinstance(items, str | bytes | bytearray | Mapping), kind, items)
        return write(items)

    return checked


def _read_items(kind: Any) -> Callable[[Any, Any], Any]:
    args = get_args(kind)
    item = args[0] if args and not isinstance(args[0], TypeVar) else Any
    made, read = _MADE_OF_ITEMS[get_origin(kind) or kind], list_structure_factory(list[item], converter)  # type: ignore[valid-type]

    def checked(data: Any, _: Any) -> Any:
        _refuse_unless(type(data) is list, kind, data)
        items = read(data, kind)
        return items if made is list else made(items)

    return checked


def _is_fixed_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple and not _is_items(kind)


def _write_fixed_tuple(kind: Any) -> Callable[[Any], Any]:
    size, write = len(get_args(kind)), make_hetero_tuple_unstructure_fn(kind, converter, unstructure_to=list)

    def checked(items: Any) -> Any:
        _refuse_unless(isinstance(items, tuple | list) and len(items) == size, kind, items)
        return write(tuple(items))

    return checked


def _write_named_tuple(kind: Any) -> Callable[[Any], Any]:
    return _write_fixed_tuple(tuple_of(kind))


def _read_named_tuple(kind: Any) -> Callable[[Any, Any], Any]:
    plain = tuple_of(kind)
    read = converter.get_structure_hook(plain)
    return lambda data, _: kind(*read(data, plain))


def _is_deque(kind: Any) -> bool:
    return (get_origin(kind) or kind) is deque


def _write_deque(kind: Any) -> Callable[[Any], Any]:
    write = iterable_unstructure_factory(kind, converter, unstructure_to=list)

    def checked(items: Any) -> Any:
        _refuse_unless(isinstance(items, deque), kind, items)
        return write(items) if items.maxlen is None else {"items": write(items), "maxlen": items.maxlen}

    return checked


def _read_deque(kind: Any) -> Callable[[Any, Any], Any]:
    item = (*get_args(kind), Any)[0]
    plain = list[item]  # type: ignore[valid-type]
    read = converter.get_structure_hook(plain)

    def made(data: Any, _: Any) -> Any:
        return deque(read(data["items"], plain), data["maxlen"]) if type(data) is dict else deque(read(data, plain))

    return made


def _write_record(kind: Any) -> Callable[[Any], Any]:
    cls = get_origin(kind) or kind
    write = make_dict_unstructure_fn(fields_class(kind), converter)

    def checked(record: Any) -> Any:
        _refuse_unless(type(record) is cls, kind, record)
        return write(record)

    def with_extra(model: Any) -> Any:
        return {**checked(model), **converter.unstructure(model.__pydantic_extra__ or {})}

    return with_extra if is_pydantic(cls) else checked


def _read_record(kind: Any) -> Callable[[Any, Any], Any]:
    """Set the fields as they were, as `pickle` does.

    What the class does in `__init__`, with converters or in `__post_init__` was done when the object was made first.
    """
    cls, fields = get_origin(kind) or kind, fields_class(kind)
    base = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
    if base is not object:
        raise TypeError(f"{cls.__qualname__} is made from {base.__qualname__}, whose part of an object is no field")
    read = make_dict_structure_fn(fields, converter)
    fill = _fill_model if is_pydantic(cls) else _fill

    def made(data: Any, _: Any) -> Any:
        record = cls.__new__(cls)
        fill(record, vars(read(data, fields)), data)
        return record

    return made


_HEAP_TYPE = 1 << 9  # a class that was made by a `class` statement, as `copyreg` tells them


def _fill(record: Any, fields: dict[str, Any], _: Any) -> None:
    for name, value in fields.items():
        object.__setattr__(record, name, value)


def _fill_model(model: Any, fields: dict[str, Any], data: Any) -> None:
    cls = type(model)
    private = {
        name: copy.copy(attribute.default) if attribute.default_factory is None else attribute.default_factory()
        for name, attribute in cls.__private_attributes__.items()
    }
    keeps_extra = cls.model_config.get("extra") == "allow"
    model.__setstate__(
        {
            "__dict__": fields,
            "__pydantic_fields_set__": set(fields),
            "__pydantic_extra__": {name: data[name] for name in data if name not in fields} if keeps_extra else None,
            "__pydantic_private__": {name: made for name, made in private.items() if made is not undefined()} or None,
        }
    )


def _is_of_pydantic(kind: Any) -> bool:
    """Whether *kind* is a type of pydantic's own, as `HttpUrl`."""
    return isinstance(kind, type) and kind.__module__.partition(".")[0] in ("pydantic", "pydantic_core")


def _write_of_pydantic(kind: Any) -> Callable[[Any], Any]:
    from pydantic import TypeAdapter

    adapter = TypeAdapter(kind)
    return lambda value: adapter.dump_python(value, mode="json")


def _read_of_pydantic(kind: Any) -> Callable[[Any, Any], Any]:
    from pydantic import TypeAdapter

    adapter = TypeAdapter(kind)
    return lambda data, _: adapter.validate_json(encode(data))


def _is_plain_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum) and not issubclass(kind, int | str | float)


def _read_enum(kind: Any) -> Callable[[Any, Any], Any]:
    for member in kind:
        if type(member.value) not in (int, str, float, bool, NoneType):
            raise TypeError(f"the value of {member} is no JSON scalar, but {type(member.value).__name__}")
    return lambda data, _: kind(data)


def _is_literal(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is Literal


def _read_literal(kind: Any) -> Callable[[Any, Any], Any]:
    known = {}
    for value in get_args(kind):
        written = converter.unstructure(value)
        known[type(written), written] = value

    def read(data: Any, _: Any) -> Any:
        _refuse_unless(isinstance(data, Hashable) and (type(data), data) in known, kind, data)
        return known[type(data), data]  # cattrs would take True for 1

    return read


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and len(set(get_args(kind)) - {NoneType}) > 1


def _write_union(kind: Any) -> Callable[[Any], Any]:
    classes = set(get_args(kind)) - {str, int, float, bool, NoneType}

    def write(value: Any) -> Any:
        written = converter.unstructure(value)  # by its class; what comes back as something else is refused then
        if isinstance(value, str | int | float) and type(value) in classes:
            # The str that a member of a StrEnum would come back as is equal to it.
            back = type(converter.structure(written, kind))
            if back is not type(value):
                raise TypeError(f"{shown(value)} would come back as {back.__name__}, of the same union")
        return written

    return write


def _write_keyed_mapping(kind: Any) -> Callable[[Any], Any]:
    key_type, value_type = key_and_value(kind)

    def write(mapping: Any) -> Any:
        return {_write_key(key, key_type): converter.unstructure(value, value_type) for key, value in mapping.items()}

    return write


def _write_key(key: object, kind: Any) -> str:
    written = converter.unstructure(key, kind)
    text = str.__str__(written) if isinstance(written, str) else encode(to_json(written, "a key"))
    if (found := _read_key(text, kind)) != key:
        raise TypeError(f"the key {shown(key)} would come back as {shown(found)}")
    return text


def _read_keyed_mapping(kind: Any) -> Callable[[Any, Any], Any]:
    key_type, value_type = key_and_value(kind)
    origin, factory = get_origin(kind) or kind, get_origin(value_type) or value_type
    if origin is defaultdict and (factory is Any or not isinstance(factory, type)):
        raise TypeError("its annotation does not say what the defaultdict makes: defaultdict[str, int] does")
    kinds: dict[Any, Any] = {OrderedDict: OrderedDict, Counter: Counter, defaultdict: partial(defaultdict, factory)}
    make = kinds.get(origin, dict)

    def read(data: Any, _: Any) -> Any:
        return make({_read_key(key, key_type): converter.structure(value, value_type) for key, value in data.items()})

    return read


def _read_key(key: str, kind: Any) -> Any:
    try:
        return converter.structure(key, kind)
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001 - hooks raise any error: then the key was no str
        return converter.structure(decode(key), kind)


def _write_as(kind: type[T], write: Callable[[T], Json]) -> Callable[[T], Json]:
    def checked(value: T) -> Json:
        _refuse_unless(isinstance(value, kind), kind, value)
        return write(value)

    return checked


def _write_moment(moment: Any) -> Json:
    """Write a datetime or a time, with the name of its zone, as RFC 9557 does."""
    zone = getattr(moment.tzinfo, "key", None)
    text: str = moment.isoformat()
    return text if zone is None else f"{text}[{zone}]"


def _read_datetime(text: str, kind: type[dt.datetime]) -> dt.datetime:
    plain, _, zone = text.partition("[")
    moment = kind.fromisoformat(plain)
    if not zone:
        return moment
    local = moment.replace(tzinfo=ZoneInfo(zone.removesuffix("]")))
    for candidate in (local, local.replace(fold=1)):
        if candidate.utcoffset() == moment.utcoffset():
            return candidate
    return moment.astimezone(local.tzinfo)  # the zone's rules have changed since: the moment has not


def _read_time(text: str, kind: type[dt.time]) -> dt.time:
    plain, _, zone = text.partition("[")
    moment = kind.fromisoformat(plain)
    return moment.replace(tzinfo=ZoneInfo(zone.removesuffix("]"))) if zone else moment


def _write_date(value: Any) -> Json:
    _refuse_unless(isinstance(value, dt.date) and not isinstance(value, dt.datetime), dt.date, value)
    return value.isoformat()


def _is_path(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, PurePath)


def _in_a_thread(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make each hook in a thread of its own, where the stack is empty.

    cattrs takes any error of a predicate for "it does not match": a RecursionError of the caller's deep stack too, or
    what a signal handler raises. It would keep the wrong hook that it finds then for the rest of the process.
    """

    def hook(kind: Any) -> Any:
        if hasattr(_thread, "makes_hooks"):
            return make(kind)
        made: list[Any] = []
        errors: list[BaseException] = []
        done = threading.Lock()

        def run() -> None:
            _thread.makes_hooks = True
            try:
                made.append(make(kind))
            except RecursionError:
                errors.append(TypeError(f"{kind!r:.80} contains itself"))
            except BaseException as error:  # noqa: BLE001 - it is raised where the hook is asked for
                errors.append(error)
            finally:
                done.release()

        done.acquire()
        try:
            start_new_thread(run, ())
        except RecursionError:
            raise
        except RuntimeError:  # no more threads can be started
            return make(kind)
        with done:
            pass
        if errors:
            raise errors[0]
        return made[0]

    return hook


_thread = threading.local()  # has an attribute in the threads that make hooks

_MADE_OF_ITEMS: dict[Any, Callable[[list[Any]], Any]] = {
    list: list,
    Sequence: list,
    MutableSequence: list,
    set: set,
    frozenset: frozenset,
    tuple: tuple,
}

converter = make_converter(unstruct_collection_overrides={Set: list, frozenset: list})
for _dispatch in (converter._structure_func, converter._unstructure_func):
    _dispatch.dispatch = lru_cache(maxsize=None)(_in_a_thread(_dispatch.dispatch_without_caching))
for _scalar, _hook in SCALAR_HOOKS.items():
    converter.register_structure_hook(_scalar, _hook)
converter.register_unstructure_hook_factory(_is_of_pydantic, _write_of_pydantic)
converter.register_structure_hook_factory(_is_of_pydantic, _read_of_pydantic)
converter.register_unstructure_hook_factory(is_record, _write_record)
converter.register_structure_hook_factory(is_record, _read_record)
converter.register_structure_hook_factory(_is_plain_enum, _read_enum)
converter.register_unstructure_hook_func(_is_literal, converter.unstructure)
converter.register_structure_hook_factory(_is_literal, _read_literal)
converter.register_unstructure_hook_func(
    lambda kind: kind is object, lambda value: value if type(value) is object else converter.unstructure(value)
)
converter.register_structure_hook_func(lambda kind: kind is object, lambda data, _: data)
converter.register_unstructure_hook_factory(_is_deque, _write_deque)
converter.register_structure_hook_factory(_is_deque, _read_deque)
converter.register_unstructure_hook_factory(_is_items, _write_items)
converter.register_structure_hook_factory(_is_items, _read_items)
converter.register_unstructure_hook_factory(_is_fixed_tuple, _write_fixed_tuple)
converter.register_unstructure_hook_factory(is_named_tuple, _write_named_tuple)
converter.register_structure_hook_factory(is_named_tuple, _read_named_tuple)
converter.register_unstructure_hook_factory(_is_union, _write_union)
converter.register_unstructure_hook_factory(
    is_typed_dict, lambda kind: make_typeddict_dict_unstructure_fn(resolved_typed_dict(kind), converter)
)
converter.register_structure_hook_factory(
    is_typed_dict, lambda kind: make_typeddict_dict_structure_fn(resolved_typed_dict(kind), converter)
)
converter.register_unstructure_hook_factory(is_keyed_mapping, _write_keyed_mapping)
converter.register_structure_hook_factory(is_keyed_mapping, _read_keyed_mapping)
converter.register_unstructure_hook(Decimal, _write_as(Decimal, str))
converter.register_structure_hook(bytes, lambda text, kind: kind(b85decode(text)))
converter.register_structure_hook(Decimal, lambda text, kind: kind(text))
converter.register_unstructure_hook(UUID, _write_as(UUID, str))
converter.register_structure_hook(UUID, lambda text, kind: kind(text))
converter.register_unstructure_hook(dt.datetime, _write_as(dt.datetime, _write_moment))
converter.register_structure_hook(dt.datetime, _read_datetime)
converter.register_unstructure_hook(dt.date, _write_date)
converter.register_structure_hook(dt.date, lambda text, kind: kind.fromisoformat(text))
converter.register_unstructure_hook(dt.time, _write_as(dt.time, _write_moment))
converter.register_structure_hook(dt.time, _read_time)
converter.register_unstructure_hook(
    dt.timedelta, _write_as(dt.timedelta, lambda span: [span.days, span.seconds, span.microseconds])
)
converter.register_structure_hook(dt.timedelta, lambda parts, kind: kind(*parts))
converter.register_unstructure_hook(Path, _write_as(Path, str))
converter.register_unstructure_hook_factory(_is_path, lambda kind: _write_as(kind, str))
converter.register_structure_hook_func(_is_path, lambda text, kind: kind(text))
