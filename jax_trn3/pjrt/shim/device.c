// PJRT_Device and PJRT_Memory: identity. How many bytes live where is account.c.
#include "shim.h"

static char* duplicate(const char* text, size_t size) {
  char* copy = malloc(size + 1);
  if (copy != NULL) {
    memcpy(copy, text, size);
    copy[size] = 0;
  }
  return copy;
}

// memory: a pjrt.api.MemorySpace.
static PJRT_Memory* memory_new(PJRT_Device* device, size_t index, PyObject* object) {
  PJRT_Memory* memory = handle_new(KIND_MEMORY, sizeof(*memory));
  if (memory == NULL) {
    PyErr_NoMemory();
    return NULL;
  }
  const PJRT_MemoryDescription* kind = device->description->memory_kinds[index];
  memory->device = device;
  memory->id = device->description->id * (int)device->description->num_memories + (int)index;
  memory->kind_id = kind->kind_id;
  memory->kind = duplicate(kind->kind, kind->kind_size);
  memory->kind_size = kind->kind_size;
  memory->bytes_limit = attribute_int(object, "bytes_limit");
  PyObject* text = PyUnicode_FromFormat("%s(id=%d, device=%s)", memory->kind, memory->id,
                                        device->description->to_string);
  if (text != NULL) {
    memory->to_string = copy_string(text, &memory->to_string_size);
    memory->debug_string = copy_string(text, &memory->debug_string_size);
  }
  Py_XDECREF(text);
  return memory;
}

static bool device_new(PJRT_Client* client, size_t i, PyObject* object) {
  PJRT_Device* device = handle_new(KIND_DEVICE, sizeof(*device));
  if (device == NULL) {
    PyErr_NoMemory();
    return false;
  }
  client->devices[client->num_devices++] = device;
  device->client = client;
  device->description = client->topology->descriptions[i];
  device->local_hardware_id = (int)attribute_int(object, "local_hardware_id");
  device->is_addressable = device->local_hardware_id >= 0;
  if (PyErr_Occurred() != NULL) return false;
  PyObject* memories = PyObject_GetAttrString(object, "memories");
  device->memories = calloc(device->description->num_memories, sizeof(void*));
  for (size_t k = 0; memories != NULL && k < device->description->num_memories; k++) {
    device->memories[k] = memory_new(device, k, PyTuple_GetItem(memories, (Py_ssize_t)k));
    if (device->memories[k] == NULL) break;
    device->num_memories++;
  }
  Py_XDECREF(memories);
  return PyErr_Occurred() == NULL;
}

bool devices_new(PJRT_Client* client) {
  size_t n = client->topology->num_devices;
  PyObject* objects = PyObject_GetAttrString(client->topology->object, "devices");
  client->devices = calloc(n + 1, sizeof(void*));
  client->addressable_devices = calloc(n + 1, sizeof(void*));
  bool ok = objects != NULL;
  for (size_t i = 0; ok && i < n; i++)
    ok = device_new(client, i, PyTuple_GetItem(objects, (Py_ssize_t)i));
  Py_XDECREF(objects);
  if (!ok) return false;
  size_t num_memories = 0;
  for (size_t i = 0; i < n; i++) {
    if (!client->devices[i]->is_addressable) continue;
    client->addressable_devices[client->num_addressable_devices++] = client->devices[i];
    num_memories += client->devices[i]->num_memories;
  }
  client->memories = calloc(num_memories + 1, sizeof(void*));
  for (size_t i = 0; i < client->num_addressable_devices; i++) {
    PJRT_Device* device = client->addressable_devices[i];
    for (size_t k = 0; k < device->num_memories; k++)
      client->memories[client->num_memories++] = device->memories[k];
  }
  return true;
}

void devices_free(PJRT_Client* client) {
  for (size_t i = 0; i < client->num_devices; i++) {
    PJRT_Device* device = client->devices[i];
    for (size_t k = 0; k < device->num_memories; k++) {
      PJRT_Memory* memory = device->memories[k];
      free(memory->kind);
      free(memory->to_string);
      free(memory->debug_string);
      handle_free(memory);
    }
    free(device->memories);
    handle_free(device);
  }
  free(client->devices);
  free(client->addressable_devices);
  free(client->memories);
}

// ---- The API ---------------------------------------------------------------------------------

FUNCTION(Device_GetDescription, device_description) {
  NEED(args->device, KIND_DEVICE);
  args->device_description = args->device->description;
  return NULL;
}

FUNCTION(Device_IsAddressable, is_addressable) {
  NEED(args->device, KIND_DEVICE);
  args->is_addressable = args->device->is_addressable;
  return NULL;
}

FUNCTION(Device_LocalHardwareId, local_hardware_id) {
  NEED(args->device, KIND_DEVICE);
  args->local_hardware_id = args->device->local_hardware_id;
  return NULL;
}

FUNCTION(Device_AddressableMemories, num_memories) {
  NEED(args->device, KIND_DEVICE);
  args->memories = args->device->memories;
  args->num_memories = args->device->num_memories;
  return NULL;
}

FUNCTION(Device_DefaultMemory, memory) {
  NEED(args->device, KIND_DEVICE);
  args->memory = args->device->memories[0];
  return NULL;
}

// The attributes belong to the description; there is nothing to delete.
static void device_attributes_free(PJRT_Device_Attributes* attributes) { (void)attributes; }

FUNCTION(Device_GetAttributes, attributes_deleter) {
  NEED(args->device, KIND_DEVICE);
  args->attributes = args->device->description->attributes;
  args->num_attributes = args->device->description->num_attributes;
  args->device_attributes = NULL;
  args->attributes_deleter = device_attributes_free;
  return NULL;
}

FUNCTION(Device_MemoryStats, bytes_limit_is_set) {
  NEED(args->device, KIND_DEVICE);
  PJRT_Memory* memory = args->device->memories[0];
  char* stats = (char*)&args->bytes_in_use;  // all that a shorter, older struct has room for
  const size_t begin = offsetof(__typeof__(*args), bytes_in_use);
  const size_t end = offsetof(__typeof__(*args), peak_pool_bytes_is_set) + sizeof(bool);
  memset(stats, 0, (args->struct_size < end ? args->struct_size : end) - begin);
  args->bytes_in_use = atomic_load(&memory->bytes_in_use);
  args->peak_bytes_in_use = atomic_load(&memory->peak_bytes_in_use);
  args->peak_bytes_in_use_is_set = true;
  args->num_allocs = atomic_load(&memory->num_allocs);
  args->num_allocs_is_set = true;
  args->largest_alloc_size = atomic_load(&memory->largest_alloc_size);
  args->largest_alloc_size_is_set = true;
  args->bytes_limit = memory->bytes_limit;
  args->bytes_limit_is_set = memory->bytes_limit > 0;
  if (memory->bytes_limit > 0 && HAS(args, largest_free_block_bytes_is_set)) {
    args->bytes_reservable_limit = memory->bytes_limit;
    args->bytes_reservable_limit_is_set = true;
    int64_t rest = memory->bytes_limit - args->bytes_in_use;
    args->largest_free_block_bytes = rest > 0 ? rest : 0;
    args->largest_free_block_bytes_is_set = true;
  }
  return NULL;
}

FUNCTION(Device_ClearMemoryStats, device) {
  NEED(args->device, KIND_DEVICE);
  for (size_t k = 0; k < args->device->num_memories; k++) {
    PJRT_Memory* memory = args->device->memories[k];
    atomic_store(&memory->peak_bytes_in_use, atomic_load(&memory->bytes_in_use));
    atomic_store(&memory->num_allocs, 0);
    atomic_store(&memory->largest_alloc_size, 0);
  }
  return NULL;
}

FUNCTION(Device_CreateAsyncTrackingEvent, event) {
  NEED(args->device, KIND_DEVICE);
  args->event = NULL;  // nothing to track; the framework takes NULL for that
  return NULL;
}

FUNCTION(AsyncTrackingEvent_Destroy, event) {
  (void)args;
  return NULL;
}

FUNCTION(Memory_Id, id) {
  NEED(args->memory, KIND_MEMORY);
  args->id = args->memory->id;
  return NULL;
}

FUNCTION(Memory_Kind, kind_size) {
  NEED(args->memory, KIND_MEMORY);
  args->kind = args->memory->kind;
  args->kind_size = args->memory->kind_size;
  return NULL;
}

FUNCTION(Memory_Kind_Id, kind_id) {
  NEED(args->memory, KIND_MEMORY);
  args->kind_id = args->memory->kind_id;
  return NULL;
}

FUNCTION(Memory_DebugString, debug_string_size) {
  NEED(args->memory, KIND_MEMORY);
  args->debug_string = args->memory->debug_string;
  args->debug_string_size = args->memory->debug_string_size;
  return NULL;
}

FUNCTION(Memory_ToString, to_string_size) {
  NEED(args->memory, KIND_MEMORY);
  args->to_string = args->memory->to_string;
  args->to_string_size = args->memory->to_string_size;
  return NULL;
}

FUNCTION(Memory_AddressableByDevices, num_devices) {
  NEED(args->memory, KIND_MEMORY);
  args->devices = &args->memory->device;
  args->num_devices = 1;
  return NULL;
}
