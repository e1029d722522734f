// PJRT_Buffer: one shard of a Python array, with everything that can be asked of it at hand.
#include "shim.h"

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

PyObject* buffer_array(PJRT_Buffer* buffer, PJRT_Event** ready) {
  Shards* shards = atomic_load(&buffer->shards);
  if (shards == NULL) return NULL;
  if (ready != NULL) *ready = event_keep(shards->ready);
  return Py_NewRef(shards->array);
}

// ---- What can be asked -----------------------------------------------------------------------

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
  args->event = shards_ready(&args->buffer->shards);
  if (args->event != NULL) return NULL;
  args->event = event_new();
  if (args->event == NULL) return error_no_memory();
  event_set(args->event, buffer_deleted_error(args->buffer, "waiting for a buffer"));
  return NULL;
}
