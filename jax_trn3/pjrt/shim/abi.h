// The part of the PJRT C API that the shim speaks: version 0.112 (jaxlib 0.10.2).
//
// Names, order, types and sizes are the interface's own (openxla/xla, xla/pjrt/c/pjrt_c_api.h and
// its layouts, shardings and memory-descriptions extensions, commit 5a9e73cb); every struct asserts
// the size the framework writes into struct_size. LP64 only.
#ifndef JAX_TRN3_PJRT_SHIM_ABI_H_
#define JAX_TRN3_PJRT_SHIM_ABI_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PJRT_API_MAJOR 0
#define PJRT_API_MINOR 112

// Every function of the API, in the order of its slot.
#define PJRT_FUNCTIONS(X) \
  X(Error_Destroy) X(Error_Message) X(Error_GetCode) X(Plugin_Initialize) X(Plugin_Attributes) \
  X(Event_Destroy) X(Event_IsReady) X(Event_Error) X(Event_Await) X(Event_OnReady) \
  X(Client_Create) X(Client_Destroy) X(Client_PlatformName) X(Client_ProcessIndex) \
  X(Client_PlatformVersion) X(Client_Devices) X(Client_AddressableDevices) \
  X(Client_LookupDevice) X(Client_LookupAddressableDevice) X(Client_AddressableMemories) \
  X(Client_Compile) X(Client_DefaultDeviceAssignment) X(Client_BufferFromHostBuffer) \
  X(DeviceDescription_Id) X(DeviceDescription_ProcessIndex) X(DeviceDescription_Attributes) \
  X(DeviceDescription_Kind) X(DeviceDescription_DebugString) X(DeviceDescription_ToString) \
  X(Device_GetDescription) X(Device_IsAddressable) X(Device_LocalHardwareId) \
  X(Device_AddressableMemories) X(Device_DefaultMemory) X(Device_MemoryStats) X(Memory_Id) \
  X(Memory_Kind) X(Memory_DebugString) X(Memory_ToString) X(Memory_AddressableByDevices) \
  X(Executable_Destroy) X(Executable_Name) X(Executable_NumReplicas) \
  X(Executable_NumPartitions) X(Executable_NumOutputs) X(Executable_SizeOfGeneratedCodeInBytes) \
  X(Executable_GetCostAnalysis) X(Executable_OutputMemoryKinds) X(Executable_OptimizedProgram) \
  X(Executable_Serialize) X(LoadedExecutable_Destroy) X(LoadedExecutable_GetExecutable) \
  X(LoadedExecutable_AddressableDevices) X(LoadedExecutable_Delete) \
  X(LoadedExecutable_IsDeleted) X(LoadedExecutable_Execute) X(Executable_DeserializeAndLoad) \
  X(LoadedExecutable_Fingerprint) X(Buffer_Destroy) X(Buffer_ElementType) X(Buffer_Dimensions) \
  X(Buffer_UnpaddedDimensions) X(Buffer_DynamicDimensionIndices) X(Buffer_GetMemoryLayout) \
  X(Buffer_OnDeviceSizeInBytes) X(Buffer_Device) X(Buffer_Memory) X(Buffer_Delete) \
  X(Buffer_IsDeleted) X(Buffer_CopyToDevice) X(Buffer_ToHostBuffer) X(Buffer_IsOnCpu) \
  X(Buffer_ReadyEvent) X(Buffer_UnsafePointer) X(Buffer_IncreaseExternalReferenceCount) \
  X(Buffer_DecreaseExternalReferenceCount) X(Buffer_OpaqueDeviceMemoryDataPointer) \
  X(CopyToDeviceStream_Destroy) X(CopyToDeviceStream_AddChunk) X(CopyToDeviceStream_TotalBytes) \
  X(CopyToDeviceStream_GranuleSize) X(CopyToDeviceStream_CurrentBytes) \
  X(TopologyDescription_Create) X(TopologyDescription_Destroy) \
  X(TopologyDescription_PlatformName) X(TopologyDescription_PlatformVersion) \
  X(TopologyDescription_GetDeviceDescriptions) X(TopologyDescription_Serialize) \
  X(TopologyDescription_Attributes) X(Compile) X(Executable_OutputElementTypes) \
  X(Executable_OutputDimensions) X(Buffer_CopyToMemory) X(Client_CreateViewOfDeviceBuffer) \
  X(Executable_Fingerprint) X(Client_TopologyDescription) X(Executable_GetCompiledMemoryStats) \
  X(Memory_Kind_Id) X(ExecuteContext_Create) X(ExecuteContext_Destroy) X(Buffer_CopyRawToHost) \
  X(AsyncHostToDeviceTransferManager_Destroy) X(AsyncHostToDeviceTransferManager_TransferData) \
  X(Client_CreateBuffersForAsyncHostToDevice) \
  X(AsyncHostToDeviceTransferManager_RetrieveBuffer) X(AsyncHostToDeviceTransferManager_Device) \
  X(AsyncHostToDeviceTransferManager_BufferCount) \
  X(AsyncHostToDeviceTransferManager_BufferSize) \
  X(AsyncHostToDeviceTransferManager_SetBufferError) \
  X(AsyncHostToDeviceTransferManager_AddMetadata) X(Client_DmaMap) X(Client_DmaUnmap) \
  X(Client_CreateUninitializedBuffer) X(Client_UpdateGlobalProcessInfo) \
  X(TopologyDescription_Deserialize) X(Client_CreateAliasBuffer) X(Client_FulfillAliasBuffer) \
  X(LoadedExecutable_GetDeviceAssignment) X(Client_CreateErrorBuffer) \
  X(AsyncHostToDeviceTransferManager_TransferLiteral) X(Buffer_CopyRawToHostFuture) \
  X(Device_PoisonExecution) X(Device_CreateAsyncTrackingEvent) X(AsyncTrackingEvent_Destroy) \
  X(Executable_GetCompileOptions) X(Buffer_DonateWithControlDependency) X(Event_Create) \
  X(Event_Set) X(Device_GetAttributes) X(Client_Load) \
  X(LoadedExecutable_AddressableDeviceLogicalIds) X(Buffer_Bitcast) X(Error_ForEachPayload) \
  X(TopologyDescription_Fingerprint) X(Executable_ParameterMemoryKinds) \
  X(Device_ClearMemoryStats) X(TopologyDescription_MakeCanonicalShapeForMemorySpace) \
  X(TopologyDescription_GetMemorySpaceKindIds)

typedef enum {
  PJRT_Error_Code_OK = 0, PJRT_Error_Code_CANCELLED = 1, PJRT_Error_Code_UNKNOWN = 2,
  PJRT_Error_Code_INVALID_ARGUMENT = 3, PJRT_Error_Code_DEADLINE_EXCEEDED = 4,
  PJRT_Error_Code_NOT_FOUND = 5, PJRT_Error_Code_ALREADY_EXISTS = 6,
  PJRT_Error_Code_PERMISSION_DENIED = 7, PJRT_Error_Code_RESOURCE_EXHAUSTED = 8,
  PJRT_Error_Code_FAILED_PRECONDITION = 9, PJRT_Error_Code_ABORTED = 10,
  PJRT_Error_Code_OUT_OF_RANGE = 11, PJRT_Error_Code_UNIMPLEMENTED = 12,
  PJRT_Error_Code_INTERNAL = 13, PJRT_Error_Code_UNAVAILABLE = 14,
  PJRT_Error_Code_DATA_LOSS = 15, PJRT_Error_Code_UNAUTHENTICATED = 16,
} PJRT_Error_Code;

typedef enum {
  PJRT_NamedValue_kString = 0, PJRT_NamedValue_kInt64 = 1, PJRT_NamedValue_kInt64List = 2,
  PJRT_NamedValue_kFloat = 3, PJRT_NamedValue_kBool = 4,
} PJRT_NamedValue_Type;

typedef enum {
  PJRT_HostBufferSemantics_kImmutableOnlyDuringCall = 0,
  PJRT_HostBufferSemantics_kImmutableUntilTransferCompletes = 1,
  PJRT_HostBufferSemantics_kImmutableZeroCopy = 2, PJRT_HostBufferSemantics_kMutableZeroCopy = 3,
} PJRT_HostBufferSemantics;

typedef enum {
  PJRT_Buffer_MemoryLayout_Type_Tiled = 0, PJRT_Buffer_MemoryLayout_Type_Strides = 1,
} PJRT_Buffer_MemoryLayout_Type;

typedef enum {
  PJRT_Buffer_Type_INVALID = 0, PJRT_Buffer_Type_PRED = 1, PJRT_Buffer_Type_S8 = 2,
  PJRT_Buffer_Type_S16 = 3, PJRT_Buffer_Type_S32 = 4, PJRT_Buffer_Type_S64 = 5,
  PJRT_Buffer_Type_U8 = 6, PJRT_Buffer_Type_U16 = 7, PJRT_Buffer_Type_U32 = 8,
  PJRT_Buffer_Type_U64 = 9, PJRT_Buffer_Type_F16 = 10, PJRT_Buffer_Type_F32 = 11,
  PJRT_Buffer_Type_F64 = 12, PJRT_Buffer_Type_BF16 = 13, PJRT_Buffer_Type_C64 = 14,
  PJRT_Buffer_Type_C128 = 15, PJRT_Buffer_Type_F8E5M2 = 16, PJRT_Buffer_Type_F8E4M3FN = 17,
  PJRT_Buffer_Type_F8E4M3B11FNUZ = 18, PJRT_Buffer_Type_F8E5M2FNUZ = 19,
  PJRT_Buffer_Type_F8E4M3FNUZ = 20, PJRT_Buffer_Type_S4 = 21, PJRT_Buffer_Type_U4 = 22,
  PJRT_Buffer_Type_TOKEN = 23, PJRT_Buffer_Type_S2 = 24, PJRT_Buffer_Type_U2 = 25,
  PJRT_Buffer_Type_F8E4M3 = 26, PJRT_Buffer_Type_F8E3M4 = 27, PJRT_Buffer_Type_F8E8M0FNU = 28,
  PJRT_Buffer_Type_F4E2M1FN = 29, PJRT_Buffer_Type_S1 = 30, PJRT_Buffer_Type_U1 = 31,
} PJRT_Buffer_Type;

typedef enum {
  PJRT_Extension_Type_Layouts = 4, PJRT_Extension_Type_MemoryDescriptions = 6,
  PJRT_Extension_Type_Shardings = 19,
} PJRT_Extension_Type;

typedef struct PJRT_AsyncTrackingEvent PJRT_AsyncTrackingEvent;
typedef struct PJRT_Buffer PJRT_Buffer;
typedef struct PJRT_Client PJRT_Client;
typedef struct PJRT_Device PJRT_Device;
typedef struct PJRT_DeviceAssignmentSerialized PJRT_DeviceAssignmentSerialized;
typedef struct PJRT_DeviceDescription PJRT_DeviceDescription;
typedef struct PJRT_Device_Attributes PJRT_Device_Attributes;
typedef struct PJRT_Event PJRT_Event;
typedef struct PJRT_Executable PJRT_Executable;
typedef struct PJRT_ExecuteContext PJRT_ExecuteContext;
typedef struct PJRT_Layouts_MemoryLayout PJRT_Layouts_MemoryLayout;
typedef struct PJRT_Layouts_SerializedLayout PJRT_Layouts_SerializedLayout;
typedef struct PJRT_LoadedExecutable PJRT_LoadedExecutable;
typedef struct PJRT_MemoryDescription PJRT_MemoryDescription;
typedef struct PJRT_SerializedCompileOptions PJRT_SerializedCompileOptions;
typedef struct PJRT_SerializedExecutable PJRT_SerializedExecutable;
typedef struct PJRT_SerializedTopology PJRT_SerializedTopology;
typedef struct PJRT_TopologyDescription PJRT_TopologyDescription;
typedef struct PJRT_Error PJRT_Error;
typedef struct PJRT_Memory PJRT_Memory;

typedef struct PJRT_Extension_Base {
  size_t struct_size;
  PJRT_Extension_Type type;
  struct PJRT_Extension_Base* next;
} PJRT_Extension_Base;

#define PJRT_HEADER size_t struct_size; PJRT_Extension_Base* extension_start
// STRUCT_SIZE of the API: where the last field ends, without tail padding.
#define PJRT_ENDS(type, last, size) \
  _Static_assert(offsetof(type, last) + sizeof(((type*)0)->last) == (size), #type " has another size")

typedef struct { PJRT_HEADER; int major_version; int minor_version; } PJRT_Api_Version;
PJRT_ENDS(PJRT_Api_Version, minor_version, 24);

// What all argument structs begin with; functions that the shim refuses look no further.
typedef struct { PJRT_HEADER; } PJRT_Args;
typedef PJRT_Error* (*PJRT_Function)(PJRT_Args*);

enum {
#define X(name) PJRT_Slot_##name,
  PJRT_FUNCTIONS(X)
#undef X
  PJRT_NumSlots
};
_Static_assert(PJRT_NumSlots == 138, "PJRT C API 0.112 has 138 functions");

typedef struct {
  PJRT_HEADER;
  PJRT_Api_Version pjrt_api_version;
  PJRT_Function slots[PJRT_NumSlots];
} PJRT_Api;
PJRT_ENDS(PJRT_Api, slots, 1144);

typedef void (*PJRT_Error_PayloadVisitor)(const char* key, size_t key_size, const char* value,
                                          size_t value_size, void* user_arg);
typedef void (*PJRT_Event_OnReadyCallback)(PJRT_Error* error, void* user_arg);
typedef PJRT_Error* (*PJRT_CallbackError)(PJRT_Error_Code code, const char* message,
                                          size_t message_size);
typedef void (*PJRT_KeyValueGetCallback_ValueDeleter)(char* value);

typedef struct {
  PJRT_HEADER; const char* name; size_t name_size; PJRT_NamedValue_Type type;
  union {
    const char* string_value; int64_t int64_value; const int64_t* int64_array_value;
    float float_value; bool bool_value;
  };
  size_t value_size;
} PJRT_NamedValue;
PJRT_ENDS(PJRT_NamedValue, value_size, 56);

typedef struct { PJRT_HEADER; PJRT_Error* error; } PJRT_Error_Destroy_Args;
PJRT_ENDS(PJRT_Error_Destroy_Args, error, 24);
typedef struct {
  PJRT_HEADER; const PJRT_Error* error; const char* message; size_t message_size;
} PJRT_Error_Message_Args;
PJRT_ENDS(PJRT_Error_Message_Args, message_size, 40);
typedef struct {
  PJRT_HEADER; const PJRT_Error* error; PJRT_Error_Code code;
} PJRT_Error_GetCode_Args;
PJRT_ENDS(PJRT_Error_GetCode_Args, code, 28);
typedef struct {
  PJRT_HEADER; const PJRT_Error* error; PJRT_Error_PayloadVisitor visitor; void* user_arg;
} PJRT_Error_ForEachPayload_Args;
PJRT_ENDS(PJRT_Error_ForEachPayload_Args, user_arg, 40);
typedef struct {
  PJRT_HEADER; const PJRT_NamedValue* attributes; size_t num_attributes;
} PJRT_Plugin_Attributes_Args;
PJRT_ENDS(PJRT_Plugin_Attributes_Args, num_attributes, 32);
typedef struct { PJRT_HEADER; PJRT_Event* event; } PJRT_Event_Destroy_Args;
PJRT_ENDS(PJRT_Event_Destroy_Args, event, 24);
typedef struct { PJRT_HEADER; PJRT_Event* event; bool is_ready; } PJRT_Event_IsReady_Args;
PJRT_ENDS(PJRT_Event_IsReady_Args, is_ready, 25);
typedef struct { PJRT_HEADER; PJRT_Event* event; } PJRT_Event_Error_Args;
PJRT_ENDS(PJRT_Event_Error_Args, event, 24);
typedef struct { PJRT_HEADER; PJRT_Event* event; } PJRT_Event_Await_Args;
PJRT_ENDS(PJRT_Event_Await_Args, event, 24);
typedef struct {
  PJRT_HEADER; PJRT_Event* event; PJRT_Event_OnReadyCallback callback; void* user_arg;
} PJRT_Event_OnReady_Args;
PJRT_ENDS(PJRT_Event_OnReady_Args, user_arg, 40);
typedef struct { PJRT_HEADER; PJRT_Event* event; } PJRT_Event_Create_Args;
PJRT_ENDS(PJRT_Event_Create_Args, event, 24);
typedef struct {
  PJRT_HEADER; PJRT_Event* event; PJRT_Error_Code error_code; const char* error_message;
  size_t error_message_size;
} PJRT_Event_Set_Args;
PJRT_ENDS(PJRT_Event_Set_Args, error_message_size, 48);
typedef struct {
  PJRT_HEADER; const char* key; size_t key_size; int timeout_in_ms;
  PJRT_CallbackError* callback_error; void* user_arg; char* value; size_t value_size;
  PJRT_KeyValueGetCallback_ValueDeleter value_deleter_callback;
} PJRT_KeyValueGetCallback_Args;
PJRT_ENDS(PJRT_KeyValueGetCallback_Args, value_deleter_callback, 80);
typedef PJRT_Error* (*PJRT_KeyValueGetCallback)(PJRT_KeyValueGetCallback_Args* args);
typedef struct {
  PJRT_HEADER; const char* key; size_t key_size; const char* value; size_t value_size;
  PJRT_CallbackError* callback_error; void* user_arg;
} PJRT_KeyValuePutCallback_Args;
PJRT_ENDS(PJRT_KeyValuePutCallback_Args, user_arg, 64);
typedef PJRT_Error* (*PJRT_KeyValuePutCallback)(PJRT_KeyValuePutCallback_Args* args);
typedef struct {
  PJRT_HEADER; const PJRT_NamedValue* create_options; size_t num_options;
  PJRT_KeyValueGetCallback kv_get_callback; void* kv_get_user_arg;
  PJRT_KeyValuePutCallback kv_put_callback; void* kv_put_user_arg; PJRT_Client* client;
  void* kv_try_get_callback; void* kv_try_get_user_arg;
} PJRT_Client_Create_Args;
PJRT_ENDS(PJRT_Client_Create_Args, kv_try_get_user_arg, 88);
typedef struct { PJRT_HEADER; PJRT_Client* client; } PJRT_Client_Destroy_Args;
PJRT_ENDS(PJRT_Client_Destroy_Args, client, 24);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; const char* platform_name; size_t platform_name_size;
} PJRT_Client_PlatformName_Args;
PJRT_ENDS(PJRT_Client_PlatformName_Args, platform_name_size, 40);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; int process_index;
} PJRT_Client_ProcessIndex_Args;
PJRT_ENDS(PJRT_Client_ProcessIndex_Args, process_index, 28);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; const char* platform_version; size_t platform_version_size;
} PJRT_Client_PlatformVersion_Args;
PJRT_ENDS(PJRT_Client_PlatformVersion_Args, platform_version_size, 40);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; PJRT_TopologyDescription* topology;
} PJRT_Client_TopologyDescription_Args;
PJRT_ENDS(PJRT_Client_TopologyDescription_Args, topology, 32);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; PJRT_Device* const* devices; size_t num_devices;
} PJRT_Client_Devices_Args;
PJRT_ENDS(PJRT_Client_Devices_Args, num_devices, 40);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; PJRT_Device* const* addressable_devices;
  size_t num_addressable_devices;
} PJRT_Client_AddressableDevices_Args;
PJRT_ENDS(PJRT_Client_AddressableDevices_Args, num_addressable_devices, 40);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; int id; PJRT_Device* device;
} PJRT_Client_LookupDevice_Args;
PJRT_ENDS(PJRT_Client_LookupDevice_Args, device, 40);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; int local_hardware_id; PJRT_Device* addressable_device;
} PJRT_Client_LookupAddressableDevice_Args;
PJRT_ENDS(PJRT_Client_LookupAddressableDevice_Args, addressable_device, 40);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; PJRT_Memory* const* addressable_memories;
  size_t num_addressable_memories;
} PJRT_Client_AddressableMemories_Args;
PJRT_ENDS(PJRT_Client_AddressableMemories_Args, num_addressable_memories, 40);
typedef struct {
  PJRT_HEADER; char* code; size_t code_size; const char* format; size_t format_size;
} PJRT_Program;
PJRT_ENDS(PJRT_Program, format_size, 48);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; const PJRT_Program* program; const char* compile_options;
  size_t compile_options_size; PJRT_LoadedExecutable* executable;
} PJRT_Client_Compile_Args;
PJRT_ENDS(PJRT_Client_Compile_Args, executable, 56);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; int num_replicas; int num_partitions;
  size_t default_assignment_size; int* default_assignment;
} PJRT_Client_DefaultDeviceAssignment_Args;
PJRT_ENDS(PJRT_Client_DefaultDeviceAssignment_Args, default_assignment, 48);
typedef struct {
  PJRT_HEADER; const int64_t* minor_to_major; size_t minor_to_major_size;
  const int64_t* tile_dims; const size_t* tile_dim_sizes; size_t num_tiles;
} PJRT_Buffer_MemoryLayout_Tiled;
PJRT_ENDS(PJRT_Buffer_MemoryLayout_Tiled, num_tiles, 56);
typedef struct {
  PJRT_HEADER; const int64_t* byte_strides; size_t num_byte_strides;
} PJRT_Buffer_MemoryLayout_Strides;
PJRT_ENDS(PJRT_Buffer_MemoryLayout_Strides, num_byte_strides, 32);
typedef struct {
  PJRT_HEADER;
  union { PJRT_Buffer_MemoryLayout_Tiled tiled; PJRT_Buffer_MemoryLayout_Strides strides; };
  PJRT_Buffer_MemoryLayout_Type type;
} PJRT_Buffer_MemoryLayout;
PJRT_ENDS(PJRT_Buffer_MemoryLayout, type, 76);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; const void* data; PJRT_Buffer_Type type; const int64_t* dims;
  size_t num_dims; const int64_t* byte_strides; size_t num_byte_strides;
  PJRT_HostBufferSemantics host_buffer_semantics; PJRT_Device* device; PJRT_Memory* memory;
  PJRT_Buffer_MemoryLayout* device_layout; PJRT_Event* done_with_host_buffer;
  PJRT_Buffer* buffer;
} PJRT_Client_BufferFromHostBuffer_Args;
PJRT_ENDS(PJRT_Client_BufferFromHostBuffer_Args, buffer, 120);
typedef struct {
  PJRT_HEADER; PJRT_DeviceDescription* device_description; int id;
} PJRT_DeviceDescription_Id_Args;
PJRT_ENDS(PJRT_DeviceDescription_Id_Args, id, 28);
typedef struct {
  PJRT_HEADER; PJRT_DeviceDescription* device_description; int process_index;
} PJRT_DeviceDescription_ProcessIndex_Args;
PJRT_ENDS(PJRT_DeviceDescription_ProcessIndex_Args, process_index, 28);
typedef struct {
  PJRT_HEADER; PJRT_DeviceDescription* device_description; size_t num_attributes;
  const PJRT_NamedValue* attributes;
} PJRT_DeviceDescription_Attributes_Args;
PJRT_ENDS(PJRT_DeviceDescription_Attributes_Args, attributes, 40);
typedef struct {
  PJRT_HEADER; PJRT_DeviceDescription* device_description; const char* device_kind;
  size_t device_kind_size;
} PJRT_DeviceDescription_Kind_Args;
PJRT_ENDS(PJRT_DeviceDescription_Kind_Args, device_kind_size, 40);
typedef struct {
  PJRT_HEADER; PJRT_DeviceDescription* device_description; const char* debug_string;
  size_t debug_string_size;
} PJRT_DeviceDescription_DebugString_Args;
PJRT_ENDS(PJRT_DeviceDescription_DebugString_Args, debug_string_size, 40);
typedef struct {
  PJRT_HEADER; PJRT_DeviceDescription* device_description; const char* to_string;
  size_t to_string_size;
} PJRT_DeviceDescription_ToString_Args;
PJRT_ENDS(PJRT_DeviceDescription_ToString_Args, to_string_size, 40);
typedef struct {
  PJRT_HEADER; PJRT_Device* device; PJRT_DeviceDescription* device_description;
} PJRT_Device_GetDescription_Args;
PJRT_ENDS(PJRT_Device_GetDescription_Args, device_description, 32);
typedef struct {
  PJRT_HEADER; PJRT_Device* device; bool is_addressable;
} PJRT_Device_IsAddressable_Args;
PJRT_ENDS(PJRT_Device_IsAddressable_Args, is_addressable, 25);
typedef struct {
  PJRT_HEADER; PJRT_Device* device; int local_hardware_id;
} PJRT_Device_LocalHardwareId_Args;
PJRT_ENDS(PJRT_Device_LocalHardwareId_Args, local_hardware_id, 28);
typedef struct {
  PJRT_HEADER; PJRT_Device* device; PJRT_Memory* const* memories; size_t num_memories;
} PJRT_Device_AddressableMemories_Args;
PJRT_ENDS(PJRT_Device_AddressableMemories_Args, num_memories, 40);
typedef struct {
  PJRT_HEADER; PJRT_Device* device; PJRT_Memory* memory;
} PJRT_Device_DefaultMemory_Args;
PJRT_ENDS(PJRT_Device_DefaultMemory_Args, memory, 32);
typedef struct {
  PJRT_HEADER; PJRT_Device* device; int64_t bytes_in_use; int64_t peak_bytes_in_use;
  bool peak_bytes_in_use_is_set; int64_t num_allocs; bool num_allocs_is_set;
  int64_t largest_alloc_size; bool largest_alloc_size_is_set; int64_t bytes_limit;
  bool bytes_limit_is_set; int64_t bytes_reserved; bool bytes_reserved_is_set;
  int64_t peak_bytes_reserved; bool peak_bytes_reserved_is_set; int64_t bytes_reservable_limit;
  bool bytes_reservable_limit_is_set; int64_t largest_free_block_bytes;
  bool largest_free_block_bytes_is_set; int64_t pool_bytes; bool pool_bytes_is_set;
  int64_t peak_pool_bytes; bool peak_pool_bytes_is_set;
} PJRT_Device_MemoryStats_Args;
PJRT_ENDS(PJRT_Device_MemoryStats_Args, peak_pool_bytes_is_set, 185);
typedef struct { PJRT_HEADER; PJRT_Device* device; } PJRT_Device_ClearMemoryStats_Args;
PJRT_ENDS(PJRT_Device_ClearMemoryStats_Args, device, 24);
typedef struct {
  PJRT_HEADER; PJRT_Device* device; const PJRT_NamedValue* attributes; size_t num_attributes;
  PJRT_Device_Attributes* device_attributes;
  void (*attributes_deleter)(PJRT_Device_Attributes* device_attributes);
} PJRT_Device_GetAttributes_Args;
PJRT_ENDS(PJRT_Device_GetAttributes_Args, attributes_deleter, 56);
typedef struct {
  PJRT_HEADER; PJRT_Device* device; const char* description; size_t description_size;
  PJRT_AsyncTrackingEvent* event;
} PJRT_Device_CreateAsyncTrackingEvent_Args;
PJRT_ENDS(PJRT_Device_CreateAsyncTrackingEvent_Args, event, 48);
typedef struct {
  PJRT_HEADER; PJRT_AsyncTrackingEvent* event;
} PJRT_AsyncTrackingEvent_Destroy_Args;
PJRT_ENDS(PJRT_AsyncTrackingEvent_Destroy_Args, event, 24);
typedef struct { PJRT_HEADER; PJRT_Memory* memory; int id; } PJRT_Memory_Id_Args;
PJRT_ENDS(PJRT_Memory_Id_Args, id, 28);
typedef struct {
  PJRT_HEADER; PJRT_Memory* memory; const char* kind; size_t kind_size;
} PJRT_Memory_Kind_Args;
PJRT_ENDS(PJRT_Memory_Kind_Args, kind_size, 40);
typedef struct { PJRT_HEADER; PJRT_Memory* memory; int kind_id; } PJRT_Memory_Kind_Id_Args;
PJRT_ENDS(PJRT_Memory_Kind_Id_Args, kind_id, 28);
typedef struct {
  PJRT_HEADER; PJRT_Memory* memory; const char* debug_string; size_t debug_string_size;
} PJRT_Memory_DebugString_Args;
PJRT_ENDS(PJRT_Memory_DebugString_Args, debug_string_size, 40);
typedef struct {
  PJRT_HEADER; PJRT_Memory* memory; const char* to_string; size_t to_string_size;
} PJRT_Memory_ToString_Args;
PJRT_ENDS(PJRT_Memory_ToString_Args, to_string_size, 40);
typedef struct {
  PJRT_HEADER; PJRT_Memory* memory; PJRT_Device* const* devices; size_t num_devices;
} PJRT_Memory_AddressableByDevices_Args;
PJRT_ENDS(PJRT_Memory_AddressableByDevices_Args, num_devices, 40);
typedef struct { PJRT_HEADER; PJRT_ExecuteContext* context; } PJRT_ExecuteContext_Create_Args;
PJRT_ENDS(PJRT_ExecuteContext_Create_Args, context, 24);
typedef struct { PJRT_HEADER; PJRT_ExecuteContext* context; } PJRT_ExecuteContext_Destroy_Args;
PJRT_ENDS(PJRT_ExecuteContext_Destroy_Args, context, 24);
typedef struct { PJRT_HEADER; PJRT_Executable* executable; } PJRT_Executable_Destroy_Args;
PJRT_ENDS(PJRT_Executable_Destroy_Args, executable, 24);
typedef struct {
  PJRT_HEADER; PJRT_LoadedExecutable* executable;
} PJRT_LoadedExecutable_Destroy_Args;
PJRT_ENDS(PJRT_LoadedExecutable_Destroy_Args, executable, 24);
typedef struct {
  PJRT_HEADER; PJRT_LoadedExecutable* loaded_executable; PJRT_Executable* executable;
} PJRT_LoadedExecutable_GetExecutable_Args;
PJRT_ENDS(PJRT_LoadedExecutable_GetExecutable_Args, executable, 32);
typedef struct {
  PJRT_HEADER; PJRT_LoadedExecutable* executable; const char* serialized_bytes;
  size_t serialized_bytes_size; PJRT_DeviceAssignmentSerialized* serialized_device_assignment;
  void (*serialized_device_assignment_deleter)(PJRT_DeviceAssignmentSerialized* da);
} PJRT_LoadedExecutable_GetDeviceAssignment_Args;
PJRT_ENDS(PJRT_LoadedExecutable_GetDeviceAssignment_Args, serialized_device_assignment_deleter, 56);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; const char* executable_name;
  size_t executable_name_size;
} PJRT_Executable_Name_Args;
PJRT_ENDS(PJRT_Executable_Name_Args, executable_name_size, 40);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; size_t num_replicas;
} PJRT_Executable_NumReplicas_Args;
PJRT_ENDS(PJRT_Executable_NumReplicas_Args, num_replicas, 32);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; size_t num_partitions;
} PJRT_Executable_NumPartitions_Args;
PJRT_ENDS(PJRT_Executable_NumPartitions_Args, num_partitions, 32);
typedef struct { int replica; int partition; } PJRT_LogicalDeviceIds;
PJRT_ENDS(PJRT_LogicalDeviceIds, partition, 8);
typedef struct {
  PJRT_HEADER; PJRT_LoadedExecutable* executable; PJRT_Device* const* addressable_devices;
  size_t num_addressable_devices;
} PJRT_LoadedExecutable_AddressableDevices_Args;
PJRT_ENDS(PJRT_LoadedExecutable_AddressableDevices_Args, num_addressable_devices, 40);
typedef struct {
  PJRT_HEADER; PJRT_LoadedExecutable* executable;
  PJRT_LogicalDeviceIds* addressable_device_logical_ids;
  size_t num_addressable_device_logical_ids;
} PJRT_LoadedExecutable_AddressableDeviceLogicalIds_Args;
PJRT_ENDS(PJRT_LoadedExecutable_AddressableDeviceLogicalIds_Args, num_addressable_device_logical_ids, 40);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; PJRT_Program* program;
} PJRT_Executable_OptimizedProgram_Args;
PJRT_ENDS(PJRT_Executable_OptimizedProgram_Args, program, 32);
typedef struct {
  PJRT_HEADER; PJRT_LoadedExecutable* executable;
} PJRT_LoadedExecutable_Delete_Args;
PJRT_ENDS(PJRT_LoadedExecutable_Delete_Args, executable, 24);
typedef struct {
  PJRT_HEADER; PJRT_LoadedExecutable* executable; bool is_deleted;
} PJRT_LoadedExecutable_IsDeleted_Args;
PJRT_ENDS(PJRT_LoadedExecutable_IsDeleted_Args, is_deleted, 25);
typedef struct {
  PJRT_HEADER; void** send_callbacks; void** recv_callbacks; size_t num_send_ops;
  size_t num_recv_ops; int launch_id; const int64_t* non_donatable_input_indices;
  size_t num_non_donatable_input_indices; PJRT_ExecuteContext* context;
  const char* call_location; size_t num_tasks; int* task_ids; int64_t* incarnation_ids;
  void* multi_slice_config; bool use_major_to_minor_data_layout_for_callbacks;
  void* hlo_output_callbacks; size_t num_hlo_output_callbacks;
} PJRT_ExecuteOptions;
PJRT_ENDS(PJRT_ExecuteOptions, num_hlo_output_callbacks, 144);
typedef struct {
  PJRT_HEADER; PJRT_LoadedExecutable* executable; PJRT_ExecuteOptions* options;
  PJRT_Buffer* const* const* argument_lists; size_t num_devices; size_t num_args;
  PJRT_Buffer** const* output_lists; PJRT_Event** device_complete_events;
  PJRT_Device* execute_device;
} PJRT_LoadedExecutable_Execute_Args;
PJRT_ENDS(PJRT_LoadedExecutable_Execute_Args, execute_device, 80);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; size_t num_outputs;
} PJRT_Executable_NumOutputs_Args;
PJRT_ENDS(PJRT_Executable_NumOutputs_Args, num_outputs, 32);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; int64_t size_in_bytes;
} PJRT_Executable_SizeOfGeneratedCodeInBytes_Args;
PJRT_ENDS(PJRT_Executable_SizeOfGeneratedCodeInBytes_Args, size_in_bytes, 32);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; const char* executable_fingerprint;
  size_t executable_fingerprint_size;
} PJRT_Executable_Fingerprint_Args;
PJRT_ENDS(PJRT_Executable_Fingerprint_Args, executable_fingerprint_size, 40);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; size_t num_properties;
  const PJRT_NamedValue* properties;
} PJRT_Executable_GetCostAnalysis_Args;
PJRT_ENDS(PJRT_Executable_GetCostAnalysis_Args, properties, 40);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; int64_t generated_code_size_in_bytes;
  int64_t argument_size_in_bytes; int64_t output_size_in_bytes; int64_t alias_size_in_bytes;
  int64_t temp_size_in_bytes; int64_t host_generated_code_size_in_bytes;
  int64_t host_argument_size_in_bytes; int64_t host_output_size_in_bytes;
  int64_t host_alias_size_in_bytes; int64_t host_temp_size_in_bytes;
  int64_t peak_memory_in_bytes; int64_t total_size_in_bytes; int64_t total_allocation_bytes;
  int64_t indefinite_allocations; int64_t peak_unpadded_heap_bytes;
} PJRT_Executable_GetCompiledMemoryStats_Args;
PJRT_ENDS(PJRT_Executable_GetCompiledMemoryStats_Args, peak_unpadded_heap_bytes, 144);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; PJRT_Buffer_Type* output_types;
  size_t num_output_types;
} PJRT_Executable_OutputElementTypes_Args;
PJRT_ENDS(PJRT_Executable_OutputElementTypes_Args, num_output_types, 40);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; size_t num_outputs; const int64_t* dims;
  const size_t* dim_sizes;
} PJRT_Executable_OutputDimensions_Args;
PJRT_ENDS(PJRT_Executable_OutputDimensions_Args, dim_sizes, 48);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; size_t num_parameters;
  const char* const* memory_kinds; const size_t* memory_kind_sizes;
} PJRT_Executable_ParameterMemoryKinds_Args;
PJRT_ENDS(PJRT_Executable_ParameterMemoryKinds_Args, memory_kind_sizes, 48);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; size_t num_outputs; const char* const* memory_kinds;
  const size_t* memory_kind_sizes;
} PJRT_Executable_OutputMemoryKinds_Args;
PJRT_ENDS(PJRT_Executable_OutputMemoryKinds_Args, memory_kind_sizes, 48);
typedef struct {
  PJRT_HEADER; const PJRT_Executable* executable; const char* serialized_bytes;
  size_t serialized_bytes_size; PJRT_SerializedExecutable* serialized_executable;
  void (*serialized_executable_deleter)(PJRT_SerializedExecutable* exec);
} PJRT_Executable_Serialize_Args;
PJRT_ENDS(PJRT_Executable_Serialize_Args, serialized_executable_deleter, 56);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; const char* serialized_bytes;
  size_t serialized_bytes_size; PJRT_SerializedCompileOptions* serialized_compile_options;
  void (*serialized_compile_options_deleter)(PJRT_SerializedCompileOptions* options);
} PJRT_Executable_GetCompileOptions_Args;
PJRT_ENDS(PJRT_Executable_GetCompileOptions_Args, serialized_compile_options_deleter, 56);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; const char* serialized_executable;
  size_t serialized_executable_size; PJRT_LoadedExecutable* loaded_executable;
  const char* overridden_serialized_compile_options;
  size_t overridden_serialized_compile_options_size; void* load_options;
} PJRT_Executable_DeserializeAndLoad_Args;
PJRT_ENDS(PJRT_Executable_DeserializeAndLoad_Args, load_options, 72);
typedef struct {
  PJRT_HEADER; PJRT_LoadedExecutable* executable; const char* executable_fingerprint;
  size_t executable_fingerprint_size;
} PJRT_LoadedExecutable_Fingerprint_Args;
PJRT_ENDS(PJRT_LoadedExecutable_Fingerprint_Args, executable_fingerprint_size, 40);
typedef struct { PJRT_HEADER; PJRT_Buffer* buffer; } PJRT_Buffer_Destroy_Args;
PJRT_ENDS(PJRT_Buffer_Destroy_Args, buffer, 24);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer; PJRT_Buffer_Type type;
} PJRT_Buffer_ElementType_Args;
PJRT_ENDS(PJRT_Buffer_ElementType_Args, type, 28);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer; const int64_t* dims; size_t num_dims;
} PJRT_Buffer_Dimensions_Args;
PJRT_ENDS(PJRT_Buffer_Dimensions_Args, num_dims, 40);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer; PJRT_Buffer_MemoryLayout layout;
} PJRT_Buffer_GetMemoryLayout_Args;
PJRT_ENDS(PJRT_Buffer_GetMemoryLayout_Args, layout, 104);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* src; PJRT_Buffer_MemoryLayout* host_layout; void* dst;
  size_t dst_size; PJRT_Event* event;
} PJRT_Buffer_ToHostBuffer_Args;
PJRT_ENDS(PJRT_Buffer_ToHostBuffer_Args, event, 56);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer; size_t on_device_size_in_bytes;
} PJRT_Buffer_OnDeviceSizeInBytes_Args;
PJRT_ENDS(PJRT_Buffer_OnDeviceSizeInBytes_Args, on_device_size_in_bytes, 32);
typedef struct { PJRT_HEADER; PJRT_Buffer* buffer; } PJRT_Buffer_Delete_Args;
PJRT_ENDS(PJRT_Buffer_Delete_Args, buffer, 24);
typedef struct { PJRT_HEADER; PJRT_Buffer* buffer; bool is_deleted; } PJRT_Buffer_IsDeleted_Args;
PJRT_ENDS(PJRT_Buffer_IsDeleted_Args, is_deleted, 25);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer; void* dst; int64_t offset; int64_t transfer_size;
  PJRT_Event* event;
} PJRT_Buffer_CopyRawToHost_Args;
PJRT_ENDS(PJRT_Buffer_CopyRawToHost_Args, event, 56);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer; PJRT_Device* dst_device; PJRT_Buffer* dst_buffer;
} PJRT_Buffer_CopyToDevice_Args;
PJRT_ENDS(PJRT_Buffer_CopyToDevice_Args, dst_buffer, 40);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer; PJRT_Memory* dst_memory; PJRT_Buffer* dst_buffer;
} PJRT_Buffer_CopyToMemory_Args;
PJRT_ENDS(PJRT_Buffer_CopyToMemory_Args, dst_buffer, 40);
typedef struct { PJRT_HEADER; PJRT_Buffer* buffer; bool is_on_cpu; } PJRT_Buffer_IsOnCpu_Args;
PJRT_ENDS(PJRT_Buffer_IsOnCpu_Args, is_on_cpu, 25);
typedef struct { PJRT_HEADER; PJRT_Buffer* buffer; PJRT_Device* device; } PJRT_Buffer_Device_Args;
PJRT_ENDS(PJRT_Buffer_Device_Args, device, 32);
typedef struct { PJRT_HEADER; PJRT_Buffer* buffer; PJRT_Memory* memory; } PJRT_Buffer_Memory_Args;
PJRT_ENDS(PJRT_Buffer_Memory_Args, memory, 32);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer; PJRT_Event* event;
} PJRT_Buffer_ReadyEvent_Args;
PJRT_ENDS(PJRT_Buffer_ReadyEvent_Args, event, 32);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer; uintptr_t buffer_pointer;
} PJRT_Buffer_UnsafePointer_Args;
PJRT_ENDS(PJRT_Buffer_UnsafePointer_Args, buffer_pointer, 32);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer;
} PJRT_Buffer_IncreaseExternalReferenceCount_Args;
PJRT_ENDS(PJRT_Buffer_IncreaseExternalReferenceCount_Args, buffer, 24);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer;
} PJRT_Buffer_DecreaseExternalReferenceCount_Args;
PJRT_ENDS(PJRT_Buffer_DecreaseExternalReferenceCount_Args, buffer, 24);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer; void* device_memory_ptr;
} PJRT_Buffer_OpaqueDeviceMemoryDataPointer_Args;
PJRT_ENDS(PJRT_Buffer_OpaqueDeviceMemoryDataPointer_Args, device_memory_ptr, 32);
typedef struct {
  PJRT_HEADER; const char* topology_name; size_t topology_name_size;
  const PJRT_NamedValue* create_options; size_t num_options; PJRT_TopologyDescription* topology;
} PJRT_TopologyDescription_Create_Args;
PJRT_ENDS(PJRT_TopologyDescription_Create_Args, topology, 56);
typedef struct {
  PJRT_HEADER; PJRT_TopologyDescription* topology;
} PJRT_TopologyDescription_Destroy_Args;
PJRT_ENDS(PJRT_TopologyDescription_Destroy_Args, topology, 24);
typedef struct {
  PJRT_HEADER; PJRT_TopologyDescription* topology; const char* platform_version;
  size_t platform_version_size;
} PJRT_TopologyDescription_PlatformVersion_Args;
PJRT_ENDS(PJRT_TopologyDescription_PlatformVersion_Args, platform_version_size, 40);
typedef struct {
  PJRT_HEADER; const PJRT_TopologyDescription* topology; const char* platform_name;
  size_t platform_name_size;
} PJRT_TopologyDescription_PlatformName_Args;
PJRT_ENDS(PJRT_TopologyDescription_PlatformName_Args, platform_name_size, 40);
typedef struct {
  PJRT_HEADER; const PJRT_TopologyDescription* topology;
  PJRT_DeviceDescription* const* descriptions; size_t num_descriptions;
} PJRT_TopologyDescription_GetDeviceDescriptions_Args;
PJRT_ENDS(PJRT_TopologyDescription_GetDeviceDescriptions_Args, num_descriptions, 40);
typedef struct {
  PJRT_HEADER; PJRT_TopologyDescription* topology; const char* serialized_bytes;
  size_t serialized_bytes_size; PJRT_SerializedTopology* serialized_topology;
  void (*serialized_topology_deleter)(PJRT_SerializedTopology* serialized_topology);
} PJRT_TopologyDescription_Serialize_Args;
PJRT_ENDS(PJRT_TopologyDescription_Serialize_Args, serialized_topology_deleter, 56);
typedef struct {
  PJRT_HEADER; const char* serialized_topology; size_t serialized_topology_size;
  PJRT_TopologyDescription* topology;
} PJRT_TopologyDescription_Deserialize_Args;
PJRT_ENDS(PJRT_TopologyDescription_Deserialize_Args, topology, 40);
typedef struct {
  PJRT_HEADER; PJRT_TopologyDescription* topology; const PJRT_NamedValue* attributes;
  size_t num_attributes;
} PJRT_TopologyDescription_Attributes_Args;
PJRT_ENDS(PJRT_TopologyDescription_Attributes_Args, num_attributes, 40);
typedef struct {
  PJRT_HEADER; const PJRT_TopologyDescription* topology; uint64_t fingerprint;
} PJRT_TopologyDescription_Fingerprint_Args;
PJRT_ENDS(PJRT_TopologyDescription_Fingerprint_Args, fingerprint, 32);
typedef struct {
  PJRT_HEADER; const PJRT_TopologyDescription* topology; const PJRT_Program* program;
  const char* compile_options; size_t compile_options_size; PJRT_Client* client;
  PJRT_Executable* executable;
} PJRT_Compile_Args;
PJRT_ENDS(PJRT_Compile_Args, executable, 64);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; PJRT_Executable* executable; const char* compile_options;
  size_t compile_options_size; PJRT_LoadedExecutable* loaded_executable;
} PJRT_Client_Load_Args;
PJRT_ENDS(PJRT_Client_Load_Args, loaded_executable, 56);
typedef struct {
  PJRT_HEADER; PJRT_Layouts_MemoryLayout* layout;
} PJRT_Layouts_MemoryLayout_Destroy_Args;
PJRT_ENDS(PJRT_Layouts_MemoryLayout_Destroy_Args, layout, 24);
typedef struct {
  PJRT_HEADER; PJRT_Layouts_MemoryLayout* layout; const char* serialized_bytes;
  size_t serialized_bytes_size; PJRT_Layouts_SerializedLayout* serialized_layout;
  void (*serialized_layout_deleter)(PJRT_Layouts_SerializedLayout* s_layout);
} PJRT_Layouts_MemoryLayout_Serialize_Args;
PJRT_ENDS(PJRT_Layouts_MemoryLayout_Serialize_Args, serialized_layout_deleter, 56);
typedef struct {
  PJRT_HEADER; PJRT_Buffer* buffer; PJRT_Layouts_MemoryLayout* layout;
} PJRT_Layouts_PJRT_Buffer_MemoryLayout_Args;
PJRT_ENDS(PJRT_Layouts_PJRT_Buffer_MemoryLayout_Args, layout, 32);
typedef struct {
  PJRT_HEADER; PJRT_Client* client; PJRT_Buffer_Type type; const int64_t* dims; size_t num_dims;
  PJRT_Layouts_MemoryLayout* layout;
} PJRT_Layouts_PJRT_Client_GetDefaultLayout_Args;
PJRT_ENDS(PJRT_Layouts_PJRT_Client_GetDefaultLayout_Args, layout, 56);
typedef struct {
  PJRT_HEADER; PJRT_TopologyDescription* topology_description; PJRT_Buffer_Type type;
  const int64_t* dims; size_t num_dims; PJRT_Layouts_MemoryLayout* layout;
} PJRT_Layouts_PJRT_Topology_GetDefaultLayout_Args;
PJRT_ENDS(PJRT_Layouts_PJRT_Topology_GetDefaultLayout_Args, layout, 56);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; size_t num_outputs;
  PJRT_Layouts_MemoryLayout** layouts;
} PJRT_Layouts_PJRT_Executable_GetOutputLayouts_Args;
PJRT_ENDS(PJRT_Layouts_PJRT_Executable_GetOutputLayouts_Args, layouts, 40);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; size_t num_parameters;
  PJRT_Layouts_MemoryLayout** layouts;
} PJRT_Layouts_PJRT_Executable_GetParameterLayouts_Args;
PJRT_ENDS(PJRT_Layouts_PJRT_Executable_GetParameterLayouts_Args, layouts, 40);
typedef struct {
  PJRT_HEADER; PJRT_DeviceDescription* device_description;
  const PJRT_MemoryDescription* const* memory_descriptions; size_t num_memory_descriptions;
  size_t default_memory_index;
} PJRT_DeviceDescription_MemoryDescriptions_Args;
PJRT_ENDS(PJRT_DeviceDescription_MemoryDescriptions_Args, default_memory_index, 48);
typedef struct {
  PJRT_HEADER; const PJRT_MemoryDescription* memory_description; const char* kind;
  size_t kind_size; int kind_id;
} PJRT_MemoryDescription_Kind_Args;
PJRT_ENDS(PJRT_MemoryDescription_Kind_Args, kind_id, 44);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; size_t num_parameters; const char* const* shardings;
  const size_t* sharding_sizes;
} PJRT_Shardings_PJRT_Executable_ParameterShardings_Args;
PJRT_ENDS(PJRT_Shardings_PJRT_Executable_ParameterShardings_Args, sharding_sizes, 48);
typedef struct {
  PJRT_HEADER; PJRT_Executable* executable; size_t num_outputs; const char* const* shardings;
  const size_t* sharding_sizes;
} PJRT_Shardings_PJRT_Executable_OutputShardings_Args;
PJRT_ENDS(PJRT_Shardings_PJRT_Executable_OutputShardings_Args, sharding_sizes, 48);

typedef struct { PJRT_Extension_Base base; PJRT_Function functions[2]; } PJRT_TwoFunctionExtension;
_Static_assert(sizeof(PJRT_TwoFunctionExtension) == 40, "Shardings, MemoryDescriptions: 40 bytes");
typedef struct { PJRT_Extension_Base base; PJRT_Function functions[7]; } PJRT_Layouts_Extension;
_Static_assert(sizeof(PJRT_Layouts_Extension) == 80, "Layouts: 80 bytes");

#endif  // JAX_TRN3_PJRT_SHIM_ABI_H_
