// Memory of handles: zeroed, counted, and tagged with a kind so that a wrong handle is an error.
#include "shim.h"

void* handle_new(Kind kind, size_t size) {
  Handle* handle = calloc(1, size);
  if (handle == NULL) return NULL;
  handle->kind = kind;
  atomic_init(&handle->references, 1);
  return handle;
}

bool handle_release(void* handle) {
  return atomic_fetch_sub_explicit(&((Handle*)handle)->references, 1, memory_order_acq_rel) == 1;
}

void handle_free(void* handle) {
  ((Handle*)handle)->kind = KIND_DEAD;
  free(handle);
}

static const char* name_of(Kind kind) {
  switch (kind) {
    case KIND_ERROR: return "PJRT_Error";
    case KIND_EVENT: return "PJRT_Event";
    case KIND_CLIENT: return "PJRT_Client";
    case KIND_DEVICE: return "PJRT_Device";
    case KIND_MEMORY: return "PJRT_Memory";
    case KIND_DESCRIPTION: return "PJRT_DeviceDescription";
    case KIND_TOPOLOGY: return "PJRT_TopologyDescription";
    case KIND_BUFFER: return "PJRT_Buffer";
    case KIND_EXECUTABLE: return "PJRT_Executable";
    case KIND_LOADED_EXECUTABLE: return "PJRT_LoadedExecutable";
    case KIND_LAYOUT: return "PJRT_Layouts_MemoryLayout";
    case KIND_DEAD: return "a destroyed handle";
  }
  return "something that is not a handle";
}

PJRT_Error* handle_error(const void* handle, Kind wanted, const char* function) {
  return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "PJRT_%s: expected a %s, got %s", function,
                   name_of(wanted),
                   handle == NULL ? "NULL" : name_of(((const Handle*)handle)->kind));
}
