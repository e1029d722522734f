// PJRT_TopologyDescription and PJRT_DeviceDescription: what devices are, attached or not.
#include "shim.h"

static int kind_id(const char* kind) {  // FNV-1a: the same in every process
  uint32_t hash = 2166136261u;
  for (; *kind != 0; kind++) hash = (hash ^ (unsigned char)*kind) * 16777619u;
  return (int)(hash & 0x7fffffff);
}

static void description_free(PJRT_DeviceDescription* description) {
  if (description == NULL) return;
  free(description->kind);
  free(description->debug_string);
  free(description->to_string);
  named_values_free(description->attributes, description->num_attributes);
  for (size_t i = 0; description->memory_kinds != NULL && i < description->num_memories; i++) {
    PJRT_MemoryDescription* memory = description->memory_kinds[i];
    if (memory == NULL) continue;
    free(memory->kind);
    handle_free(memory);
  }
  free(description->memory_kinds);
  handle_free(description);
}

static bool read_memory_kinds(PJRT_DeviceDescription* description, PyObject* object) {
  PyObject* memories = PyObject_GetAttrString(object, "memories");
  Py_ssize_t n = memories == NULL ? -1 : PyTuple_Size(memories);
  if (n > 0) {
    description->num_memories = (size_t)n;
    description->memory_kinds = calloc((size_t)n, sizeof(void*));
    for (Py_ssize_t i = 0; i < n; i++) {
      PJRT_MemoryDescription* memory = handle_new(KIND_MEMORY_DESCRIPTION, sizeof(*memory));
      if (memory == NULL || description->memory_kinds == NULL) {
        if (memory != NULL) handle_free(memory);
        PyErr_NoMemory();
        break;
      }
      description->memory_kinds[i] = memory;
      memory->kind = attribute_string(PyTuple_GetItem(memories, i), "kind", &memory->kind_size);
      if (memory->kind == NULL) break;
      memory->kind_id = kind_id(memory->kind);
    }
  } else if (n == 0) {
    PyErr_SetString(PyExc_ValueError, "a device without memories");
  }
  Py_XDECREF(memories);
  return PyErr_Occurred() == NULL;
}

static PJRT_DeviceDescription* description_new(PyObject* object) {
  PJRT_DeviceDescription* description = handle_new(KIND_DESCRIPTION, sizeof(*description));
  if (description == NULL) {
    PyErr_NoMemory();
    return NULL;
  }
  description->id = (int)attribute_int(object, "id");
  description->process_index = (int)attribute_int(object, "process_index");
  description->kind = attribute_string(object, "kind", &description->kind_size);
  description->debug_string =
      attribute_string(object, "debug_string", &description->debug_string_size);
  description->to_string = attribute_string(object, "to_string", &description->to_string_size);
  PyObject* attributes = PyObject_GetAttrString(object, "attributes");
  if (attributes != NULL)
    description->attributes = named_values(attributes, &description->num_attributes);
  Py_XDECREF(attributes);
  if (PyErr_Occurred() != NULL || !read_memory_kinds(description, object)) {
    description_free(description);
    return NULL;
  }
  return description;
}

PJRT_TopologyDescription* topology_new(PyObject* object) {
  PJRT_TopologyDescription* topology = handle_new(KIND_TOPOLOGY, sizeof(*topology));
  if (topology == NULL) {
    PyErr_NoMemory();
    return NULL;
  }
  topology->object = Py_NewRef(object);
  topology->name = attribute_string(object, "platform_name", &topology->name_size);
  topology->version = attribute_string(object, "platform_version", &topology->version_size);
  PyObject* attributes = PyObject_GetAttrString(object, "attributes");
  if (attributes != NULL) topology->attributes = named_values(attributes, &topology->num_attributes);
  Py_XDECREF(attributes);
  PyObject* devices = PyErr_Occurred() ? NULL : PyObject_GetAttrString(object, "devices");
  Py_ssize_t n = devices == NULL ? -1 : PyTuple_Size(devices);
  if (n >= 0) topology->descriptions = calloc((size_t)n + 1, sizeof(void*));
  for (Py_ssize_t i = 0; topology->descriptions != NULL && i < n; i++) {
    topology->descriptions[i] = description_new(PyTuple_GetItem(devices, i));
    if (topology->descriptions[i] == NULL) break;
    topology->num_devices++;
  }
  Py_XDECREF(devices);
  if (PyErr_Occurred() != NULL) {
    topology_free(topology);
    return NULL;
  }
  return topology;
}

void topology_free(PJRT_TopologyDescription* topology) {
  if (topology == NULL) return;
  for (size_t i = 0; i < topology->num_devices; i++) description_free(topology->descriptions[i]);
  free(topology->descriptions);
  named_values_free(topology->attributes, topology->num_attributes);
  free(topology->name);
  free(topology->version);
  bury(topology->object);
  handle_free(topology);
}

// ---- The API ---------------------------------------------------------------------------------

FUNCTION(TopologyDescription_Create, topology) {
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  PyObject* owner = platform();
  PyObject* options = owner == NULL ? NULL : options_dict(args->create_options, args->num_options);
  PyObject* object = options == NULL ? NULL
      : PyObject_CallMethod(owner, "create_topology", "NO",
                            string_of(args->topology_name, args->topology_name_size),
                            options);
  args->topology = object == NULL ? NULL : topology_new(object);
  if (args->topology == NULL) error = error_from_python();
  Py_XDECREF(object);
  Py_XDECREF(options);
  leave(&entry);
  return error;
}

FUNCTION(TopologyDescription_Destroy, topology) {
  TAKE_BACK(args->topology, KIND_TOPOLOGY);
  topology_free(args->topology);
  return NULL;
}

FUNCTION(TopologyDescription_PlatformName, platform_name_size) {
  NEED(args->topology, KIND_TOPOLOGY);
  args->platform_name = args->topology->name;
  args->platform_name_size = args->topology->name_size;
  return NULL;
}

FUNCTION(TopologyDescription_PlatformVersion, platform_version_size) {
  NEED(args->topology, KIND_TOPOLOGY);
  args->platform_version = args->topology->version;
  args->platform_version_size = args->topology->version_size;
  return NULL;
}

FUNCTION(TopologyDescription_GetDeviceDescriptions, num_descriptions) {
  NEED(args->topology, KIND_TOPOLOGY);
  args->descriptions = args->topology->descriptions;
  args->num_descriptions = args->topology->num_devices;
  return NULL;
}

FUNCTION(TopologyDescription_Attributes, num_attributes) {
  NEED(args->topology, KIND_TOPOLOGY);
  args->attributes = args->topology->attributes;
  args->num_attributes = args->topology->num_attributes;
  return NULL;
}

typedef struct { size_t size; char bytes[]; } SerializedTopology;

static void serialized_topology_free(PJRT_SerializedTopology* serialized) { free(serialized); }

FUNCTION(TopologyDescription_Serialize, serialized_topology_deleter) {
  NEED(args->topology, KIND_TOPOLOGY);
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  size_t size = 0;
  PyObject* bytes = PyObject_CallMethod(args->topology->object, "serialize", NULL);
  char* copy = bytes == NULL ? NULL : copy_string(bytes, &size);
  if (copy == NULL) error = error_from_python();
  Py_XDECREF(bytes);
  leave(&entry);
  args->serialized_bytes = copy;
  args->serialized_bytes_size = size;
  args->serialized_topology = (PJRT_SerializedTopology*)copy;
  args->serialized_topology_deleter = serialized_topology_free;
  return error;
}

FUNCTION(TopologyDescription_Deserialize, topology) {
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  PyObject* owner = platform();
  PyObject* object = owner == NULL ? NULL
      : PyObject_CallMethod(owner, "deserialize_topology", "N",
                            bytes_of(args->serialized_topology, args->serialized_topology_size));
  args->topology = object == NULL ? NULL : topology_new(object);
  if (args->topology == NULL) error = error_from_python();
  Py_XDECREF(object);
  leave(&entry);
  return error;
}

FUNCTION(TopologyDescription_Fingerprint, fingerprint) {
  NEED(args->topology, KIND_TOPOLOGY);
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  PyObject* value = PyObject_CallMethod(args->topology->object, "fingerprint", NULL);
  args->fingerprint = value == NULL ? 0 : PyLong_AsUnsignedLongLongMask(value);
  if (PyErr_Occurred() != NULL) error = error_from_python();
  Py_XDECREF(value);
  leave(&entry);
  return error;
}

FUNCTION(DeviceDescription_Id, id) {
  NEED(args->device_description, KIND_DESCRIPTION);
  args->id = args->device_description->id;
  return NULL;
}

FUNCTION(DeviceDescription_ProcessIndex, process_index) {
  NEED(args->device_description, KIND_DESCRIPTION);
  args->process_index = args->device_description->process_index;
  return NULL;
}

FUNCTION(DeviceDescription_Attributes, attributes) {
  NEED(args->device_description, KIND_DESCRIPTION);
  args->attributes = args->device_description->attributes;
  args->num_attributes = args->device_description->num_attributes;
  return NULL;
}

FUNCTION(DeviceDescription_Kind, device_kind_size) {
  NEED(args->device_description, KIND_DESCRIPTION);
  args->device_kind = args->device_description->kind;
  args->device_kind_size = args->device_description->kind_size;
  return NULL;
}

FUNCTION(DeviceDescription_DebugString, debug_string_size) {
  NEED(args->device_description, KIND_DESCRIPTION);
  args->debug_string = args->device_description->debug_string;
  args->debug_string_size = args->device_description->debug_string_size;
  return NULL;
}

FUNCTION(DeviceDescription_ToString, to_string_size) {
  NEED(args->device_description, KIND_DESCRIPTION);
  args->to_string = args->device_description->to_string;
  args->to_string_size = args->device_description->to_string_size;
  return NULL;
}

// The memory-descriptions extension.

FUNCTION(DeviceDescription_MemoryDescriptions, default_memory_index) {
  NEED(args->device_description, KIND_DESCRIPTION);
  args->memory_descriptions =
      (const PJRT_MemoryDescription* const*)args->device_description->memory_kinds;
  args->num_memory_descriptions = args->device_description->num_memories;
  args->default_memory_index = 0;
  return NULL;
}

FUNCTION(MemoryDescription_Kind, kind_id) {
  NEED(args->memory_description, KIND_MEMORY_DESCRIPTION);
  args->kind = args->memory_description->kind;
  args->kind_size = args->memory_description->kind_size;
  args->kind_id = args->memory_description->kind_id;
  return NULL;
}
