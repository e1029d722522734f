// PJRT_Client: created from the platform's, compiles, assigns devices.
#include "shim.h"

PJRT_Device* client_device(const PJRT_Client* client, int id) {
  // Ids are dense where the topology is whole, so the first look usually hits.
  if (id >= 0 && (size_t)id < client->num_devices && client->devices[id]->description->id == id)
    return client->devices[id];
  for (size_t i = 0; i < client->num_devices; i++)
    if (client->devices[i]->description->id == id) return client->devices[i];
  return NULL;
}

// Buffers and executables keep the client, whose devices and memories they point to.
void client_release(PJRT_Client* client) {
  if (!handle_release(client)) return;
  devices_free(client);
  topology_free(client->topology);
  flights_free(client);
  bury(client->object);
  handle_free(client);
}

// Takes `object`. NULL with an exception set.
static PJRT_Client* client_new(PyObject* object) {
  PJRT_Client* client = handle_new(KIND_CLIENT, sizeof(*client));
  if (client == NULL) {
    Py_DECREF(object);
    PyErr_NoMemory();
    return NULL;
  }
  client->object = object;
  client->process_index = (int)attribute_int(object, "process_index");
  client->flight_limit = PyErr_Occurred() ? 0 : (int)attribute_int(object, "flight_limit");
  PyObject* topology = PyErr_Occurred() ? NULL : PyObject_GetAttrString(object, "topology");
  if (topology != NULL) client->topology = topology_new(topology);
  if (client->topology != NULL) handle_set_owned(client->topology, LENT);
  Py_XDECREF(topology);
  if (client->topology == NULL || !devices_new(client)) {
    client_release(client);
    return NULL;
  }
  if (client->num_addressable_devices < client->num_devices) wait_with_peers();
  mind_forks();
  return client;
}

FUNCTION(Client_Create, client) {
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  PyObject* owner = platform();
  PyObject* options = owner == NULL ? NULL : options_dict(args->create_options, args->num_options);
  PyObject* object =
      options == NULL ? NULL : PyObject_CallMethod(owner, "create_client", "O", options);
  args->client = object == NULL ? NULL : client_new(object);
  if (args->client == NULL) error = error_from_python();
  Py_XDECREF(options);
  leave(&entry);
  return error;
}

FUNCTION(Client_Destroy, client) {
  TAKE_BACK(args->client, KIND_CLIENT);
  client_release(args->client);
  return NULL;
}

FUNCTION(Client_PlatformName, platform_name_size) {
  NEED(args->client, KIND_CLIENT);
  args->platform_name = args->client->topology->name;
  args->platform_name_size = args->client->topology->name_size;
  return NULL;
}

FUNCTION(Client_ProcessIndex, process_index) {
  NEED(args->client, KIND_CLIENT);
  args->process_index = args->client->process_index;
  return NULL;
}

FUNCTION(Client_PlatformVersion, platform_version_size) {
  NEED(args->client, KIND_CLIENT);
  args->platform_version = args->client->topology->version;
  args->platform_version_size = args->client->topology->version_size;
  return NULL;
}

FUNCTION(Client_TopologyDescription, topology) {
  NEED(args->client, KIND_CLIENT);
  args->topology = args->client->topology;
  return NULL;
}

FUNCTION(Client_Devices, num_devices) {
  NEED(args->client, KIND_CLIENT);
  args->devices = args->client->devices;
  args->num_devices = args->client->num_devices;
  return NULL;
}

FUNCTION(Client_AddressableDevices, num_addressable_devices) {
  NEED(args->client, KIND_CLIENT);
  args->addressable_devices = args->client->addressable_devices;
  args->num_addressable_devices = args->client->num_addressable_devices;
  return NULL;
}

FUNCTION(Client_LookupDevice, device) {
  NEED(args->client, KIND_CLIENT);
  args->device = client_device(args->client, args->id);
  if (args->device != NULL) return NULL;
  return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "no device has id %d; there are %zu devices",
                   args->id, args->client->num_devices);
}

FUNCTION(Client_LookupAddressableDevice, addressable_device) {
  NEED(args->client, KIND_CLIENT);
  for (size_t i = 0; i < args->client->num_addressable_devices; i++) {
    args->addressable_device = args->client->addressable_devices[i];
    if (args->addressable_device->local_hardware_id == args->local_hardware_id) return NULL;
  }
  args->addressable_device = NULL;
  return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                   "no device has local hardware id %d; this process has %zu devices",
                   args->local_hardware_id, args->client->num_addressable_devices);
}

FUNCTION(Client_AddressableMemories, num_addressable_memories) {
  NEED(args->client, KIND_CLIENT);
  args->addressable_memories = args->client->memories;
  args->num_addressable_memories = args->client->num_memories;
  return NULL;
}

FUNCTION(Client_DefaultDeviceAssignment, default_assignment) {
  NEED(args->client, KIND_CLIENT);
  int replicas = args->num_replicas, partitions = args->num_partitions;
  size_t have = args->client->num_addressable_devices;
  if (replicas <= 0 || partitions <= 0 || (size_t)replicas > have / (size_t)partitions)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                     "cannot assign %d replicas x %d partitions to %zu devices", replicas,
                     partitions, have);
  size_t n = (size_t)replicas * (size_t)partitions;
  if (args->default_assignment == NULL || args->default_assignment_size < n)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                     "the assignment has room for %zu devices, %zu are needed",
                     args->default_assignment == NULL ? 0 : args->default_assignment_size, n);
  for (size_t i = 0; i < n; i++)
    args->default_assignment[i] = args->client->addressable_devices[i]->description->id;
  return NULL;
}

// Which processes are alive. The device's own transport finds out by itself; an error from here
// would abort the process.
HIDDEN PJRT_Error* PJRT_Client_UpdateGlobalProcessInfo(PJRT_Args* args) {
  (void)args;
  return NULL;
}

// ---- Programs --------------------------------------------------------------------------------

static PJRT_Error* check_program(const PJRT_Program* program, const char* function) {
  if (program != NULL && HAS(program, format_size) && program->code != NULL &&
      program->format != NULL)
    return NULL;
  return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "%s: no program", function);
}

FUNCTION(Client_Compile, executable) {
  NEED(args->client, KIND_CLIENT);
  const PJRT_Program* program = args->program;
  PJRT_Error* error = check_program(program, "PJRT_Client_Compile");
  if (error != NULL) return error;
  Entry entry;
  error = enter(&entry);
  if (error != NULL) return error;
  PyObject* object = PyObject_CallMethod(
      args->client->object, "compile", "NNN", bytes_of(program->code, program->code_size),
      string_of(program->format, program->format_size),
      bytes_of(args->compile_options, args->compile_options_size));
  args->executable = object == NULL ? NULL : loaded_executable_new(args->client, object);
  if (args->executable == NULL) error = error_from_python();
  leave(&entry);
  return error;
}

// For a topology, which need not be attached; nothing can be run afterwards, but much be asked.
FUNCTION(Compile, executable) {
  NEED(args->topology, KIND_TOPOLOGY);
  const PJRT_Program* program = args->program;
  PJRT_Error* error = check_program(program, "PJRT_Compile");
  if (error != NULL) return error;
  Entry entry;
  error = enter(&entry);
  if (error != NULL) return error;
  PyObject* owner = platform();
  PyObject* object = owner == NULL ? NULL : PyObject_CallMethod(
      owner, "compile", "ONNN", args->topology->object,
      bytes_of(program->code, program->code_size),
      string_of(program->format, program->format_size),
      bytes_of(args->compile_options, args->compile_options_size));
  args->executable = object == NULL ? NULL : executable_new(object);
  if (args->executable == NULL) error = error_from_python();
  leave(&entry);
  return error;
}

// Takes `data`, which may be NULL with an exception set.
static PJRT_LoadedExecutable* load(PJRT_Client* client, PyObject* data, PyObject* options) {
  PyObject* object = data == NULL
      ? NULL : PyObject_CallMethod(client->object, "deserialize", "OO", data, options);
  Py_XDECREF(data);
  Py_XDECREF(options);
  return object == NULL ? NULL : loaded_executable_new(client, object);
}

FUNCTION(Executable_DeserializeAndLoad, loaded_executable) {
  NEED(args->client, KIND_CLIENT);
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  bool has_options = HAS(args, overridden_serialized_compile_options_size);
  args->loaded_executable =
      load(args->client, bytes_of(args->serialized_executable, args->serialized_executable_size),
           bytes_of(has_options ? args->overridden_serialized_compile_options : NULL,
                    has_options ? args->overridden_serialized_compile_options_size : 0));
  if (args->loaded_executable == NULL) error = error_from_python();
  leave(&entry);
  return error;
}

FUNCTION(Client_Load, loaded_executable) {
  NEED(args->client, KIND_CLIENT);
  NEED(args->executable, KIND_EXECUTABLE);
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  args->loaded_executable =
      load(args->client, PyObject_CallMethod(args->executable->object, "serialize", NULL),
           bytes_of(args->compile_options, args->compile_options_size));
  if (args->loaded_executable == NULL) error = error_from_python();
  leave(&entry);
  return error;
}
