// From the host to a buffer, from there to other memories, and to the host.
#include "shim.h"

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

// A layout without tiles, given as a permutation of the array's dimensions. (jaxlib leaves its
// struct_size uninitialized.)
static bool is_permutation(const PJRT_Buffer_MemoryLayout* layout, size_t rank) {
  if (layout->type != PJRT_Buffer_MemoryLayout_Type_Tiled || layout->tiled.num_tiles > 0 ||
      layout->tiled.minor_to_major_size != rank ||
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
  PyObject* array = buffer_array(buffer, &ready);
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
  copy->array = buffer_array(buffer, &copy->ready);
  if (copy->array == NULL) {
    error = buffer_deleted_error(buffer, "PJRT_Buffer_ToHostBuffer");
  } else if (event_is_done(copy->ready)) {
    error = event_error(copy->ready);
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
  host_copy_free(copy);
  leave(&entry);
  return error;
}
