"""Exceptions as status codes, against the codes of another PJRT client."""

import pypjrt.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_trn3.pjrt.errors import PjrtError, StatusCode, status_of

ORACLE = {
    error.__name__.upper(): error.code
    for error in vars(pypjrt.errors).values()
    if isinstance(error, type) and "code" in vars(error) and error is not pypjrt.errors.PjrtError
}
FAILURES = [code for code in StatusCode if code is not StatusCode.OK]


def test_codes_have_the_numbers_of_the_c_api() -> None:
    ours = {code.name.replace("_", ""): int(code) for code in FAILURES}
    assert ours == ORACLE
    assert StatusCode.OK == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError("64 GiB"), "RESOURCE_EXHAUSTED"),
        (NotImplementedError("64 GiB"), "UNIMPLEMENTED"),
        (KeyError("64 GiB"), "NOT_FOUND"),
        (IndexError("64 GiB"), "OUT_OF_RANGE"),
        (ValueError("64 GiB"), "INVALID_ARGUMENT"),
        (TypeError("64 GiB"), "INVALID_ARGUMENT"),
        (TimeoutError("64 GiB"), "DEADLINE_EXCEEDED"),
        (RuntimeError("64 GiB"), "INTERNAL"),
        (ZeroDivisionError("64 GiB"), "INTERNAL"),
        (OSError("64 GiB"), "INTERNAL"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_each_kind_of_exception_has_its_code_and_keeps_its_message(
    error: Exception, code: str
) -> None:
    number, message = status_of(error)
    assert number == ORACLE[code.replace("_", "")]
    assert "64 GiB" in message


def test_subclass_has_the_code_of_its_base() -> None:
    assert status_of(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"))[0] == 3


def test_exception_without_text_is_named() -> None:
    assert status_of(MemoryError()) == (StatusCode.RESOURCE_EXHAUSTED, "MemoryError")
    assert "AssertionError" in status_of(AssertionError())[1]


def test_exception_of_no_known_kind_is_named_in_the_message() -> None:
    assert status_of(ZeroDivisionError("by 0")) == (
        StatusCode.INTERNAL,
        "ZeroDivisionError: by 0",
    )


def test_no_exception_at_all_is_internal() -> None:
    assert status_of(None)[0] == StatusCode.INTERNAL


@given(st.sampled_from(FAILURES), st.text())
def test_pjrt_error_keeps_code_and_message(code: StatusCode, message: str) -> None:
    assert status_of(PjrtError(code, message)) == (code, message)


@given(st.sampled_from(FAILURES), st.text())
def test_name_of_a_code_before_a_message_becomes_the_code(code: StatusCode, message: str) -> None:
    assert status_of(RuntimeError(f"{code.name}: {message}")) == (code, message)


@given(st.sampled_from(["", "OK: ", "OK", "ok: ", "OK : "]), st.text())
def test_exception_is_never_a_success(prefix: str, message: str) -> None:
    for kind in (ValueError, RuntimeError):
        assert status_of(kind(prefix + message))[0] != StatusCode.OK
