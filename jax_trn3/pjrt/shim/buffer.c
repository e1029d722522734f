// PJRT_Buffer: one shard of a Python array, with everything that can be asked of it at hand.
#include <stdio.h>

#include "shim.h"

// ---- Shards ----------------------------------------------------------------------------------

Shards* shards_new(PyObject* array, int num_shards, PJRT_Event* ready) {
  Shards* shards = malloc(sizeof(Shards));
  if (shards == NULL) {
    Py_DECREF(array);
    event_release(ready);
    return NULL;
  }
  *shards = (Shards){1, num_shards, array, ready, {NULL, shards, NULL}};
  return shards;
}

// Buffer_ReadyEvent reads buffer->shards->ready without the GIL, while another thread may delete
// the buffer or put its array together with others; nothing is freed while it reads.
static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER;

void shards_release(Shards* shards) {
  if (atomic_fetch_sub(&shards->references, 1) > 1) return;
  pthread_mutex_lock(&reading);
  pthread_mutex_unlock(&reading);
  Py_DECREF(shards->array);
  event_release(shards->ready);
  free(shards);
}

// Whether an array is ready: 1, 0, or -1 with an exception set if it never will be. An array whose
// computation failed calls itself ready; only block_until_ready() tells.
static int is_ready(PyObject* array, bool may_fail) {
  PyObject* answer = call_method(array, IS_READY);
  if (answer == NULL) return -1;
  bool ready = answer == Py_True;
  Py_DECREF(answer);
  if (!ready || !may_fail) return ready;
  answer = call_method(array, BLOCK_UNTIL_READY);
  if (answer == NULL) return -1;
  Py_DECREF(answer);
  return 1;
}

PJRT_Event* completion_of(PyObject* arrays, PyObject* extra, bool may_fail) {
  Py_ssize_t n = PyList_Size(arrays);
  int ready = extra == NULL || extra == Py_None;
  for (Py_ssize_t i = 0; ready == 1 && i < n; i++) 
    ready = is_ready(PyList_GetItem(arrays, i), may_fail);
  if (ready == 1) return event_ready();
  PJRT_Event* event = event_new();
  if (event == NULL) {
    PyErr_NoMemory();
    return NULL;
  }
  handle_set_owned(event, 0);
  if (ready == -1) {  // the arrays exist and carry the error, as if it had come later
    event_set(event, error_from_python());
    return event;
  }
  // A list of its own: the caller's may change, and `extra` is what the outputs do not tell.
  PyObject* waits = PyList_GetSlice(arrays, 0, n);
  if (waits == NULL || (extra != NULL && extra != Py_None && PyList_Append(waits, extra) != 0)) {
    Py_XDECREF(waits);
    event_release(event);
    return NULL;
  }
  wait_then_set(waits, NULL, event_keep(event));
  return event;
}

// ---- Buffers ---------------------------------------------------------------------------------

PJRT_Buffer* buffer_new(PJRT_Memory* memory, PJRT_Buffer_Type type, const int64_t* dims,
                        size_t rank, const char* layout, Shards* shards, int index) {
  PJRT_Buffer* buffer = handle_new(KIND_BUFFER, sizeof(PJRT_Buffer) + rank * sizeof(int64_t));
  char* copy = layout == NULL ? NULL : strdup(layout);
  if (buffer == NULL || (layout != NULL && copy == NULL)) {
    if (buffer != NULL) handle_free(buffer);
    free(copy);
    bury_shards(shards);
    return NULL;
  }
  buffer->layout = copy;
  buffer->client = memory->device->client;
  atomic_fetch_add(&buffer->client->head.references, 1);
  buffer->memory = memory;
  buffer->index = index;
  buffer->type = type;
  buffer->rank = rank;
  if (rank > 0) memcpy(buffer->dims, dims, rank * sizeof(int64_t));
  buffer->bytes = bytes_of_shape(type, dims, rank);
  atomic_init(&buffer->shards, shards);
  account_open(buffer);
  return buffer;
}

void buffer_delete(PJRT_Buffer* buffer) {
  Shards* shards = atomic_exchange(&buffer->shards, NULL);
  if (shards == NULL) return;
  account_close(buffer);
  bury_shards(shards);
}

PJRT_Error* buffer_deleted_error(const PJRT_Buffer* buffer, const char* what) {
  char shape[256];
  return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                   "%s: the buffer (%s, on %s) has been deleted or donated", what,
                   shape_text(buffer->type, buffer->dims, buffer->rank, shape, sizeof(shape)),
                   buffer->memory->device->description->to_string);
}

// ---- From the host, and to other memories ----------------------------------------------------

static PyObject* call_from_host(PJRT_Client_BufferFromHostBuffer_Args* args, PJRT_Memory* memory,
                                PJRT_Event* done) {
  PyObject* host = host_memory_new(args->data, done);
  PyObject* dims = host == NULL ? NULL : int64_tuple(args->dims, args->num_dims);
  PyObject* strides = dims == NULL ? NULL
      : args->byte_strides == NULL ? Py_NewRef(Py_None)
                                   : int64_tuple(args->byte_strides, args->num_byte_strides);
  PyObject* array = strides == NULL ? NULL
      : PyObject_CallMethod(args->client->object, "from_host", "OiOOiis", host, (int)args->type,
                            dims, strides, (int)args->host_buffer_semantics,
                            memory->device->local_hardware_id, memory->kind);
  Py_XDECREF(strides);
  Py_XDECREF(dims);
  Py_XDECREF(host);
  return array;
}

// A layout without tiles, given as a permutation of the array's dimensions.
static bool is_permutation(const PJRT_Buffer_MemoryLayout* layout, size_t rank) {
  if (!HAS(layout, type) || layout->type != PJRT_Buffer_MemoryLayout_Type_Tiled ||
      layout->tiled.num_tiles > 0 || layout->tiled.minor_to_major_size != rank ||
      (layout->tiled.minor_to_major == NULL && rank > 0))
    return false;
  for (size_t i = 0; i < rank; i++) {
    int64_t one = layout->tiled.minor_to_major[i];
    if (one < 0 || (uint64_t)one >= rank) return false;
    for (size_t k = 0; k < i; k++)
      if (layout->tiled.minor_to_major[k] == one) return false;
  }
  return true;
}

// What XLA or numpy would not refuse by themselves, or not without ending the process.
static PJRT_Error* check_host_array(const PJRT_Client_BufferFromHostBuffer_Args* args,
                                    const PJRT_Memory* memory) {
  size_t rank = args->num_dims;
  if (rank > MAX_RANK || (args->dims == NULL && rank > 0) ||
      (args->byte_strides == NULL ? args->num_byte_strides > 0 : args->num_byte_strides != rank))
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                     "PJRT_Client_BufferFromHostBuffer: %zu dimensions and %zu strides", rank,
                     args->num_byte_strides);
  int64_t bytes = bytes_of_shape(args->type, args->dims, rank);
  if (bytes < 0)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                     "PJRT_Client_BufferFromHostBuffer: negative dimensions, or too many elements");
  if (args->data == NULL && bytes > 0)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "PJRT_Client_BufferFromHostBuffer: no data");
  if (args->host_buffer_semantics < 0 ||
      args->host_buffer_semantics > PJRT_HostBufferSemantics_kMutableZeroCopy)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "unknown PJRT_HostBufferSemantics %d",
                     (int)args->host_buffer_semantics);
  if (memory->device->client != args->client)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "%s belongs to another client",
                     memory->to_string);
  char shape[256];
  shape_text(args->type, args->dims, rank, shape, sizeof(shape));
  PJRT_Error* error = account_check(memory, bytes, 0, shape);
  // An array that is not aligned as XLA wants it is copied whatever the semantics.
  bool copies = args->host_buffer_semantics < PJRT_HostBufferSemantics_kImmutableZeroCopy ||
                (uintptr_t)args->data % 64 != 0;
  return error != NULL || !copies ? error : account_check_host(args->client, bytes, shape);
}

static PJRT_Error* check_device_layout(const PJRT_Buffer_MemoryLayout* layout, size_t rank) {
  bool usual = is_permutation(layout, rank);
  for (size_t i = 0; usual && i < rank; i++)
    usual = layout->tiled.minor_to_major[i] == (int64_t)(rank - 1 - i);
  return usual ? NULL
      : error_new(PJRT_Error_Code_UNIMPLEMENTED,
                  "host-to-device transfers make row-major arrays; for another layout, transfer "
                  "first and then change the layout in a jitted function");
}

// Makes a buffer of a single-device array. Takes the array; NULL with an exception set.
static PJRT_Buffer* buffer_of_array(PyObject* array, PJRT_Memory* memory, PJRT_Buffer_Type type,
                                    const int64_t* dims, size_t rank, const char* layout) {
  PyObject* list = PyList_New(1);
  if (list == NULL) return NULL;
  PyList_SetItem(list, 0, array);
  PJRT_Event* ready = completion_of(list, NULL, true);
  Shards* shards = ready == NULL ? NULL : shards_new(Py_NewRef(array), 1, ready);
  Py_DECREF(list);
  PJRT_Buffer* buffer = shards == NULL ? NULL : buffer_new(memory, type, dims, rank, layout, shards, 0);
  if (buffer == NULL && PyErr_Occurred() == NULL) PyErr_NoMemory();
  return buffer;
}

FUNCTION(Client_BufferFromHostBuffer, buffer) {
  NEED(args->client, KIND_CLIENT);
  PJRT_Memory* memory = args->memory;
  if (memory == NULL || args->device != NULL) NEED(args->device, KIND_DEVICE);
  if (memory == NULL) memory = args->device->memories[0];
  NEED(memory, KIND_MEMORY);
  if (!memory->device->is_addressable)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "%s belongs to another process",
                     memory->device->description->to_string);
  PJRT_Error* error = check_host_array(args, memory);
  if (error == NULL && args->device_layout != NULL)
    error = check_device_layout(args->device_layout, args->num_dims);
  if (error != NULL) return error;
  PJRT_Event* done = event_new();
  if (done == NULL) return error_no_memory();
  Entry entry;
  error = enter(&entry);
  if (error != NULL) {
    event_release(done);
    return error;
  }
  PyObject* array = call_from_host(args, memory, done);
  args->buffer = array == NULL
      ? NULL : buffer_of_array(array, memory, args->type, args->dims, args->num_dims, NULL);
  if (args->buffer == NULL) {
    error = error_from_python();
    event_release(done);
    done = NULL;
  } else if (args->host_buffer_semantics < PJRT_HostBufferSemantics_kImmutableZeroCopy) {
    event_set(done, NULL);  // copied; the garbage that jaxlib still holds does not matter
  }
  leave(&entry);
  args->done_with_host_buffer = done;
  return error;
}

// With the GIL: the array behind a buffer, as a new reference, or NULL if the buffer is deleted.
static PyObject* array_of(PJRT_Buffer* buffer, PJRT_Event** ready) {
  Shards* shards = atomic_load(&buffer->shards);
  if (shards == NULL) return NULL;
  if (ready != NULL) *ready = event_keep(shards->ready);
  return Py_NewRef(shards->array);
}

static PJRT_Error* copy_to_memory(PJRT_Buffer* buffer, PJRT_Memory* memory, PJRT_Buffer** out) {
  if (memory->device->client != buffer->client)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "%s belongs to another client",
                     memory->to_string);
  if (!memory->device->is_addressable)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "%s belongs to another process",
                     memory->device->description->to_string);
  char shape[256];
  shape_text(buffer->type, buffer->dims, buffer->rank, shape, sizeof(shape));
  PJRT_Error* error = account_check(memory, buffer->bytes, 0, shape);
  if (error == NULL) error = account_check_host(buffer->client, buffer->bytes, shape);
  if (error != NULL) return error;
  Entry entry;
  error = enter(&entry);
  if (error != NULL) return error;
  PJRT_Event* ready = NULL;
  PyObject* array = array_of(buffer, &ready);
  if (ready != NULL) error = event_error(ready);
  event_release(ready);
  if (array == NULL) {
    error = buffer_deleted_error(buffer, "PJRT_Buffer_CopyToMemory");
  } else if (error == NULL) {
    PyObject* copy = PyObject_CallMethod(buffer->client->object, "copy", "Oiis", array,
                                         buffer->index, memory->device->local_hardware_id,
                                         memory->kind);
    *out = copy == NULL
        ? NULL : buffer_of_array(copy, memory, buffer->type, buffer->dims, buffer->rank,
                               buffer->layout);
    if (*out == NULL) error = error_from_python();
  }
  Py_XDECREF(array);
  leave(&entry);
  return error;
}

FUNCTION(Buffer_CopyToMemory, dst_buffer) {
  NEED(args->buffer, KIND_BUFFER);
  NEED(args->dst_memory, KIND_MEMORY);
  return copy_to_memory(args->buffer, args->dst_memory, &args->dst_buffer);
}

FUNCTION(Buffer_CopyToDevice, dst_buffer) {
  NEED(args->buffer, KIND_BUFFER);
  NEED(args->dst_device, KIND_DEVICE);
  return copy_to_memory(args->buffer, args->dst_device->memories[0], &args->dst_buffer);
}

// ---- To the host -----------------------------------------------------------------------------

// Bytes of the array on the host, where elements of less than a byte take one each.
static size_t host_bytes(const PJRT_Buffer* buffer) {
  int64_t elements = 1, bits = bits_of_type(buffer->type);
  for (size_t i = 0; i < buffer->rank; i++) elements *= buffer->dims[i];
  return (size_t)(elements * (bits < 8 && bits > 0 ? 8 : bits) / 8);
}

static PJRT_Error* host_layout(const PJRT_Buffer* buffer, const PJRT_Buffer_MemoryLayout* layout,
                               HostCopy* copy) {
  if (layout == NULL || buffer->rank == 0) return NULL;
  if (!is_permutation(layout, buffer->rank))
    return error_new(PJRT_Error_Code_UNIMPLEMENTED,
                     "PJRT_Buffer_ToHostBuffer: only dense layouts without tiles, given as "
                     "minor_to_major of the array's rank (%zu)", buffer->rank);
  copy->rank = buffer->rank;
  copy->minor_to_major = malloc(buffer->rank * sizeof(int64_t));
  if (copy->minor_to_major == NULL) return error_no_memory();
  memcpy(copy->minor_to_major, layout->tiled.minor_to_major, buffer->rank * sizeof(int64_t));
  return NULL;
}

FUNCTION(Buffer_ToHostBuffer, event) {
  NEED(args->src, KIND_BUFFER);
  PJRT_Buffer* buffer = args->src;
  size_t size = host_bytes(buffer);
  if (args->dst == NULL) {
    args->dst_size = size;
    return NULL;
  }
  if (args->dst_size < size)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                     "PJRT_Buffer_ToHostBuffer: the array has %zu bytes, the destination %zu", size,
                     args->dst_size);
  HostCopy* copy = calloc(1, sizeof(HostCopy));
  if (copy == NULL) return error_no_memory();
  *copy = (HostCopy){.client = buffer->client, .index = buffer->index, .destination = args->dst,
                     .size = size};
  PJRT_Error* error = host_layout(buffer, args->host_layout, copy);
  Entry entry;
  if (error == NULL) error = enter(&entry);
  if (error != NULL) {
    free(copy->minor_to_major);
    free(copy);
    return error;
  }
  PJRT_Event* ready = NULL;
  copy->array = array_of(buffer, &ready);
  if (copy->array == NULL) {
    error = buffer_deleted_error(buffer, "PJRT_Buffer_ToHostBuffer");
  } else if (event_is_done(ready)) {
    error = event_error(ready);
    if (error == NULL) error = host_copy_run(copy);
    args->event = event_ready();
  } else {
    PyObject* waits = PyList_New(1);
    args->event = event_new();
    if (waits != NULL && args->event != NULL) {
      PyList_SetItem(waits, 0, Py_NewRef(copy->array));
      wait_then_set(waits, copy, event_keep(args->event));
      copy = NULL;
    } else {
      error = error_no_memory();
      Py_XDECREF(waits);
    }
  }
  event_release(ready);
  host_copy_free(copy);
  leave(&entry);
  return error;
}

// ---- What a buffer is ------------------------------------------------------------------------

void buffer_free(PJRT_Buffer* buffer) {
  buffer_delete(buffer);
  bury(buffer->external);
  free(buffer->layout);
  client_release(buffer->client);
  handle_free(buffer);
}

FUNCTION(Buffer_Destroy, buffer) {
  TAKE_BACK(args->buffer, KIND_BUFFER);
  buffer_free(args->buffer);
  return NULL;
}

FUNCTION(Buffer_ElementType, type) {
  NEED(args->buffer, KIND_BUFFER);
  args->type = args->buffer->type;
  return NULL;
}

FUNCTION(Buffer_Dimensions, num_dims) {
  NEED(args->buffer, KIND_BUFFER);
  args->dims = args->buffer->dims;
  args->num_dims = args->buffer->rank;
  return NULL;
}

FUNCTION(Buffer_GetMemoryLayout, layout) {
  NEED(args->buffer, KIND_BUFFER);
  if (args->buffer->layout != NULL)
    return error_new(PJRT_Error_Code_UNIMPLEMENTED,
                     "PJRT_Buffer_GetMemoryLayout: the layout %s is not row-major; the Layouts "
                     "extension tells it", args->buffer->layout);
  static const int64_t descending[] = {15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
  const size_t most = sizeof(descending) / sizeof(descending[0]);
  size_t rank = args->buffer->rank;
  if (rank > most)
    return error_new(PJRT_Error_Code_UNIMPLEMENTED, "PJRT_Buffer_GetMemoryLayout: at most %zu "
                     "dimensions; the Layouts extension has no limit", most);
  memset(&args->layout, 0, sizeof(args->layout));
  args->layout.struct_size = sizeof(args->layout);
  args->layout.type = PJRT_Buffer_MemoryLayout_Type_Tiled;
  args->layout.tiled.minor_to_major = descending + (most - rank);
  args->layout.tiled.minor_to_major_size = rank;
  return NULL;
}

FUNCTION(Buffer_OnDeviceSizeInBytes, on_device_size_in_bytes) {
  NEED(args->buffer, KIND_BUFFER);
  args->on_device_size_in_bytes = (size_t)args->buffer->bytes;
  return NULL;
}

FUNCTION(Buffer_Device, device) {
  NEED(args->buffer, KIND_BUFFER);
  args->device = args->buffer->memory->device;
  return NULL;
}

FUNCTION(Buffer_Memory, memory) {
  NEED(args->buffer, KIND_BUFFER);
  args->memory = args->buffer->memory;
  return NULL;
}

FUNCTION(Buffer_Delete, buffer) {
  NEED(args->buffer, KIND_BUFFER);
  buffer_delete(args->buffer);
  return NULL;
}

FUNCTION(Buffer_IsDeleted, is_deleted) {
  NEED(args->buffer, KIND_BUFFER);
  args->is_deleted = atomic_load(&args->buffer->shards) == NULL;
  return NULL;
}

// The values live in host memory, and saying so lets numpy look at them without a copy.
FUNCTION(Buffer_IsOnCpu, is_on_cpu) {
  NEED(args->buffer, KIND_BUFFER);
  args->is_on_cpu = true;
  return NULL;
}

// An error from here would abort the process, so a deleted buffer gets an event with an error.
FUNCTION(Buffer_ReadyEvent, event) {
  NEED(args->buffer, KIND_BUFFER);
  pthread_mutex_lock(&reading);
  Shards* shards = atomic_load(&args->buffer->shards);
  args->event = shards == NULL ? NULL : event_hand_out(shards->ready);
  pthread_mutex_unlock(&reading);
  if (args->event != NULL) return NULL;
  args->event = event_new();
  if (args->event == NULL) return error_no_memory();
  event_set(args->event, buffer_deleted_error(args->buffer, "waiting for a buffer"));
  return NULL;
}

// ---- Pointers --------------------------------------------------------------------------------

static pthread_mutex_t pins = PTHREAD_MUTEX_INITIALIZER;

// Finds buffer->pointer; `holder`, a new reference, keeps the values there even when the buffer is
// deleted or donated. Waits for the values.
static PJRT_Error* locate(PJRT_Buffer* buffer, const char* what, PyObject** holder) {
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  PJRT_Event* ready = NULL;
  PyObject* array = array_of(buffer, &ready);
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
