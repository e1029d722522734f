// Where a buffer's values are: addresses, and references from outside that keep them there.
#include "shim.h"

static pthread_mutex_t pins = PTHREAD_MUTEX_INITIALIZER;

// Finds buffer->pointer; `holder`, a new reference, keeps the values there even when the buffer is
// deleted or donated. Waits for the values.
static PJRT_Error* locate(PJRT_Buffer* buffer, const char* what, PyObject** holder) {
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  PJRT_Event* ready = NULL;
  PyObject* array = buffer_array(buffer, &ready);
  if (ready != NULL) error = event_wait_for_python(ready);
  event_release(ready);
  if (array == NULL) {
    error = buffer_deleted_error(buffer, what);
  } else if (error == NULL) {
    PyObject* pair = PyObject_CallMethod(buffer->client->object, "pin", "Oi", array, buffer->index);
    unsigned long long address = 0;
    if (pair == NULL || !PyArg_ParseTuple(pair, "OK", holder, &address)) {
      error = error_from_python();
    } else {
      atomic_store(&buffer->pointer, (void*)(uintptr_t)address);
      Py_INCREF(*holder);
    }
    Py_XDECREF(pair);
  }
  Py_XDECREF(array);
  leave(&entry);
  return error;
}

static PJRT_Error* pointer_of(PJRT_Buffer* buffer, const char* what, void** pointer) {
  PyObject* holder = NULL;
  PJRT_Error* error = NULL;
  if (atomic_load(&buffer->pointer) == NULL) error = locate(buffer, what, &holder);
  bury(holder);
  *pointer = atomic_load(&buffer->pointer);
  return error;
}

FUNCTION(Buffer_UnsafePointer, buffer_pointer) {
  NEED(args->buffer, KIND_BUFFER);
  void* pointer = NULL;
  PJRT_Error* error = pointer_of(args->buffer, "PJRT_Buffer_UnsafePointer", &pointer);
  args->buffer_pointer = (uintptr_t)pointer;
  return error;
}

FUNCTION(Buffer_OpaqueDeviceMemoryDataPointer, device_memory_ptr) {
  NEED(args->buffer, KIND_BUFFER);
  return pointer_of(args->buffer, "PJRT_Buffer_OpaqueDeviceMemoryDataPointer",
                    &args->device_memory_ptr);
}

FUNCTION(Buffer_IncreaseExternalReferenceCount, buffer) {
  NEED(args->buffer, KIND_BUFFER);
  PJRT_Buffer* buffer = args->buffer;
  pthread_mutex_lock(&pins);
  bool pinned = buffer->external_references > 0;
  if (pinned) buffer->external_references++;
  pthread_mutex_unlock(&pins);
  if (pinned) return NULL;
  PyObject* holder = NULL;
  PJRT_Error* error =
      locate(buffer, "PJRT_Buffer_IncreaseExternalReferenceCount", &holder);
  if (error != NULL) return error;
  pthread_mutex_lock(&pins);
  if (buffer->external_references++ == 0) {
    buffer->external = holder;
    holder = NULL;
  }
  pthread_mutex_unlock(&pins);
  bury(holder);  // somebody else was faster
  return NULL;
}

FUNCTION(Buffer_DecreaseExternalReferenceCount, buffer) {
  NEED(args->buffer, KIND_BUFFER);
  PJRT_Buffer* buffer = args->buffer;
  PyObject* holder = NULL;
  pthread_mutex_lock(&pins);
  bool had = buffer->external_references > 0;
  if (had && --buffer->external_references == 0) {
    holder = buffer->external;
    buffer->external = NULL;
  }
  pthread_mutex_unlock(&pins);
  bury(holder);
  if (had) return NULL;
  return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                   "PJRT_Buffer_DecreaseExternalReferenceCount: there is no reference left");
}
