// PJRT_Error: a code and a message, made here or from a Python exception.
#include <stdarg.h>
#include <stdio.h>

#include "shim.h"

struct PJRT_Error {
  Handle head;
  PJRT_Error_Code code;
  size_t size;
  char* message;  // apart, because it may be long, and destroyed handles are kept a while
};

static PJRT_Error no_memory = {{NULL, KIND_ERROR, 1, LENT}, PJRT_Error_Code_RESOURCE_EXHAUSTED, 23,
                               "out of memory (on host)"};

PJRT_Error* error_no_memory(void) { return &no_memory; }

PJRT_Error* error_of(PJRT_Error_Code code, const char* message, size_t size) {
  char* copy = malloc(size + 1);
  PJRT_Error* error = copy == NULL ? NULL : handle_new(KIND_ERROR, sizeof(PJRT_Error));
  if (error == NULL) {
    free(copy);
    return error_no_memory();
  }
  if (size > 0) memcpy(copy, message, size);
  copy[size] = 0;
  error->code = code;
  error->size = size;
  error->message = copy;
  return error;
}

PJRT_Error* error_copy(const PJRT_Error* error) {
  return error == NULL ? NULL : error_of(error->code, error->message, error->size);
}

PJRT_Error* error_new(PJRT_Error_Code code, const char* format, ...) {
  char message[1024];
  va_list values;
  va_start(values, format);
  int size = vsnprintf(message, sizeof(message), format, values);
  va_end(values);
  if (size < 0) size = 0;
  if ((size_t)size >= sizeof(message)) size = sizeof(message) - 1;
  return error_of(code, message, (size_t)size);
}

PJRT_Error_Code error_code(const PJRT_Error* error) { return error->code; }

const char* error_message(const PJRT_Error* error, size_t* size) {
  *size = error->size;
  return error->message;
}

void error_free(PJRT_Error* error) {
  if (error == NULL || error == error_no_memory()) return;
  free(error->message);
  handle_free(error);
}

// For when status_of() itself failed: what it was asked about, and why it failed.
static PJRT_Error* error_about_error(PyObject* value) {
  PyObject *type, *reason, *traceback;
  PyErr_Fetch(&type, &reason, &traceback);
  PyObject* text = PyUnicode_FromFormat("%R (and, while turning it into a status: %R)",
                                        value == NULL ? Py_None : value,
                                        reason == NULL ? Py_None : reason);
  Py_ssize_t size = 0;
  const char* message = text == NULL ? NULL : PyUnicode_AsUTF8AndSize(text, &size);
  PJRT_Error* error = message == NULL
      ? error_new(PJRT_Error_Code_INTERNAL, "a Python exception that cannot be printed")
      : error_of(PJRT_Error_Code_INTERNAL, message, (size_t)size);
  PyErr_Clear();
  Py_XDECREF(text);
  Py_XDECREF(type);
  Py_XDECREF(reason);
  Py_XDECREF(traceback);
  return error;
}

// The mapping of exceptions to codes is Python's (pjrt/errors.py); should even that fail, the error
// is INTERNAL and says so.
PJRT_Error* error_from_python(void) {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  if (traceback != NULL && value != NULL) PyException_SetTraceback(value, traceback);
  PJRT_Error* error = NULL;
  PyObject* module = PyImport_ImportModule("jax_trn3.pjrt.errors");
  PyObject* status = module == NULL
      ? NULL : PyObject_CallMethod(module, "status_of", "O", value == NULL ? Py_None : value);
  if (status != NULL) {
    int code = PJRT_Error_Code_INTERNAL;
    PyObject* message = NULL;
    Py_ssize_t size = 0;
    const char* text = PyArg_ParseTuple(status, "iO", &code, &message)
        ? PyUnicode_AsUTF8AndSize(message, &size) : NULL;
    if (text != NULL) error = error_of((PJRT_Error_Code)code, text, (size_t)size);
  }
  if (error == NULL) error = error_about_error(value);
  // An interrupt that hit the engine is the user's: it is raised again as soon as the main thread is
  // back in Python, whatever becomes of this error (numpy drops those of the buffer protocol).
  if (value != NULL && PyErr_GivenExceptionMatches(value, PyExc_KeyboardInterrupt))
    PyErr_SetInterrupt();
  Py_XDECREF(status);
  Py_XDECREF(module);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(traceback);
  return error;
}

// These two return nothing, so there is nobody to tell of a bad argument.
HIDDEN void PJRT_Error_Destroy(PJRT_Args* raw) {
  PJRT_Error_Destroy_Args* args = (PJRT_Error_Destroy_Args*)raw;
  if (args == NULL || !HAS(args, error) || !handle_is(args->error, KIND_ERROR)) return;
  if (args->error == error_no_memory() || handle_take_back(args->error)) error_free(args->error);
}

HIDDEN void PJRT_Error_Message(PJRT_Args* raw) {
  PJRT_Error_Message_Args* args = (PJRT_Error_Message_Args*)raw;
  if (args == NULL || !HAS(args, message_size)) return;
  bool good = handle_is(args->error, KIND_ERROR);
  args->message = good ? args->error->message : "PJRT_Error_Message: not a PJRT_Error";
  args->message_size = good ? args->error->size : strlen(args->message);
}

FUNCTION(Error_GetCode, code) {
  NEED(args->error, KIND_ERROR);
  args->code = args->error->code;
  return NULL;
}

FUNCTION(Error_ForEachPayload, error) {
  NEED(args->error, KIND_ERROR);
  return NULL;  // no payloads; the function must exist, or the framework's error path recurses
}
