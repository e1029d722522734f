"""Neuron Explorer's tables: names, columns and types, as data.

From tools/neuron-explorer/profile-schema-reference.rst, schema 7.4.0, which says what each column
means. Of its tables those that a simulation can fill.
"""

from dataclasses import dataclass

VERSION = "7.4.0"

_TYPES = {"": "int64", "i32": "int32", "f": "double", "s": "string", "b": "bool", "list": "list"}

# A column's type stands behind its name: ":s" text, ":f" a fraction, ":b" a truth, ":i32" and
# ":list" integers, nothing an int64. "!": the reference says that it is always present.
_COLUMNS = {
    "Instruction": """
        start_ts! end_ts! duration_ns! engine:s! timeline_track:s pcore_idx opcode:s!
        operands:s! compiler_opcode:s compiler_operands:s id! pc! compiler_pc penguin_id:s
        raw_penguin_id bir_id:s! raw_bir_id bir_instruction_name:s kernel_instruction_name:s
        crc_in crc_out evt_wait_time_ns hlo_attrs:s hlo_name:s raw_hlo_id raw_framework_id
        layer:s stack_frame_ids:s nki_source_location:s bir_debug_info_source_location:s
        dma_trigger_start_ts dma_trigger_end_ts dma_wait_time_ns instruction_chain:s
        hbm_read_bytes hbm_write_bytes sbuf_read_bytes sbuf_write_bytes spill_save_bytes
        spill_reload_bytes psum_read_bytes psum_write_bytes psum_read_sbuf_write_bytes
        input_queue_bytes output_queue_bytes weight_queue_bytes performance_mode:s
        tensor_instruction_type:s tensor_elements raw_flops adjusted_flops
        tensor_elements_transpose flops_transpose adjusted_flops_transpose
        scalar_activation_fn:s
    """,
    "Flow": """
        in_id! out_id! in_table:s! out_table:s! dependency_type:s gap_time
    """,
    "DmaPacket": """
        start_ts! end_ts! duration_ns! pcore_idx id! packet_idx:i32! packet_aggregation_id!
        engine_idx read_bytes! write_bytes! transfer_bytes! throughput:f! queue_type:s!
        variable:s queue_name:s queue_idx crc!
    """,
    "DmaPacketAggregated": """
        start_ts! end_ts! duration_ns! id! pcore_idx block_id:i32! queue_idx! queue_name:s!
        queue_type:s op:s! variable:s! read_bytes! write_bytes! transfer_bytes! throughput:f!
        source:s! dest:s! semaphore_id:s! modular_flow_function:s read_sbuf_partitions:s!
        read_num_sbuf_partitions:i32! read_shape:s! read_offset:s! read_steps:s!
        write_sbuf_partitions:s! write_num_sbuf_partitions:i32! write_shape:s! write_offset:s!
        write_steps:s! is_transpose_mode:b transpose_element_size:s transpose_shape:s
        transpose_from_shape:s transpose_to_shape:s transpose_unroll_factor:s trigger completion
    """,
    "CcOp": """
        start_ts! end_ts! duration_ns! operation:s! algorithm:s! num_elements! dtype:s! op_id!
        stream_id! stream_index! trigger_engine:s! input_size output_size algorithm_bandwidth:f
        bus_bandwidth:f trigger_start_ts cc_trigger_start_delay replica_group_id replica_group:s
    """,
    "FrameworkInstruction": """
        id! raw_bir_id! raw_penguin_id! raw_hlo_id! raw_framework_id!
        modular_flow_invocation_idx framework_name:s start_ts! end_ts! time_intervals:s!
        element_count_per_interval:list! transpose_element_count_per_interval:list!
        hbm_transfer_size_per_interval:list! hbm_read_bytes! hbm_write_bytes! sbuf_read_bytes
        sbuf_write_bytes load_weight_bytes tensor_engine_instruction_count
        scalar_engine_instruction_count sync_engine_instruction_count
        gpsimd_engine_instruction_count vector_engine_instruction_count
    """,
    "SbufUsage": """
        timestamp! avg_util_percent:f partition_0_util_percent:f partition_32_util_percent:f
        partition_64_util_percent:f partition_96_util_percent:f pcore_idx
    """,
    "PsumUsage": """
        timestamp! avg_util_percent:f bank_0_util_percent:f bank_1_util_percent:f
        bank_2_util_percent:f bank_3_util_percent:f bank_4_util_percent:f bank_5_util_percent:f
        bank_6_util_percent:f bank_7_util_percent:f pcore_idx
    """,
    "HloInstruction": """
        id! raw_bir_id! raw_penguin_id! raw_hlo_id! raw_framework_id! hlo_name:s!
        modular_flow_invocation_idx start_ts! end_ts! time_intervals:s!
        element_count_per_interval:list! transpose_element_count_per_interval:list!
        hbm_transfer_size_per_interval:list! hbm_read_bytes! hbm_write_bytes! sbuf_read_bytes
        sbuf_write_bytes load_weight_bytes
    """,
    "Summary": """
        total_time:f neuroncore_cycle_count model_flops hardware_flops transpose_flops
        adjusted_hardware_flops adjusted_transpose_flops mm_arithmetic_intensity:f
        peak_flops_bandwidth_ratio:f trace_count event_count total_row_count dma_active_cycles
        dma_active_time:f dma_active_time_percent:f static_dma_active_time:f
        dynamic_dma_active_time_percent:f static_dma_active_time_percent:f
        dma_transfer_average_bytes:f dma_packet_time:f dma_transfer_time:f dma_transfer_count
        dma_transfer_total_bytes dma_queue_count inputs_and_weights_size_bytes
        inputs_outputs_weights_size_bytes weight_size_bytes static_dma_packet_count
        static_dma_size dynamic_dma_packet_percent:f static_dma_packet_percent:f
        dynamic_dma_size_percent:f static_dma_size_percent:f mbu_estimated_percent:f
        mbu_min_read_util_percent:f hbm_write_bytes hbm_read_bytes sbuf_write_bytes
        sbuf_read_bytes spill_save_bytes spill_reload_bytes psum_write_bytes psum_read_bytes
        psum_read_sbuf_write_count psum_read_sbuf_write_bytes input_queue_bytes
        output_queue_bytes weight_queue_bytes software_dynamic_dma_active_time:f
        software_dynamic_dma_active_time_percent:f software_dynamic_dma_packet_count
        software_dynamic_dma_size software_dynamic_dma_packet_percent:f
        software_dynamic_dma_size_percent:f hardware_dynamic_dma_active_time:f
        hardware_dynamic_dma_active_time_percent:f hardware_dynamic_dma_packet_count
        hardware_dynamic_dma_size hardware_dynamic_dma_packet_percent:f
        hardware_dynamic_dma_size_percent:f tensor_engine_instruction_time:f
        tensor_engine_active_time:f tensor_engine_active_time_percent:f
        tensor_engine_instruction_count matmul_instruction_count mfu_estimated_percent:f
        mfu_max_achievable_estimated_percent:f mfu_hlo_estimated_percent:f
        mfu_hlo_max_achievable_estimated_percent:f mfu_inst_estimated_percent:f
        mfu_inst_max_achievable_estimated_percent:f hfu_estimated_percent:f
        vector_engine_instruction_time:f vector_engine_active_time:f
        vector_engine_active_time_percent:f vector_engine_instruction_count
        scalar_engine_instruction_time:f scalar_engine_active_time:f
        scalar_engine_active_time_percent:f scalar_engine_instruction_count
        activate_instruction_time:f activate_instruction_count sync_engine_instruction_time:f
        sync_engine_active_time:f sync_engine_active_time_percent:f
        sync_engine_instruction_count gpsimd_engine_instruction_time:f
        gpsimd_engine_active_time:f gpsimd_engine_active_time_percent:f
        gpsimd_engine_instruction_count cc_op_time:f cc_op_active_time:f
        cc_op_active_time_percent:f cc_op_count cc_cores_instruction_time:f
        cc_cores_instruction_active_time:f cc_cores_instruction_active_time_percent:f
        cc_cores_instruction_count total_exec_time:f total_active_time:f
        total_active_time_percent:f
    """,
    "Metadata": """
        profile_schema_version:s! ntff_version:i32! num_physical_cores:i32! vnc_enabled:b!
        first_hw_timestamp! last_hw_timestamp! first_ts:s! last_ts:s! dma_ddr_bandwidth:f!
        num_dma_engines_per_neuroncore:i32! hbm_ddr_bandwidth:f! tensor_engine_num_rows!
        tensor_engine_num_cols! tensor_engine_clock_freq:f! vector_engine_clock_freq:f!
        vector_engine_num_channels! scalar_engine_clock_freq:f! scalar_engine_num_channels!
        gpsimd_engine_clock_freq:f! gpsimd_engine_num_channels! neuroncore_clock_freq:f!
        ticks_per_nanosec! instance_type:s runtime_version:s collectives_version:s
        driver_version:s explorer_version:s compiler_version:s neuroncore_idx neuron_device_idx
        ultraserver_id ultraserver_type:s ultraserver_size:i32 ultraserver_instance_index:i32
        s3_bucket_path:s profile_name:s explorer_build_time:s is_simulation:b
    """,
    "Warning": """
        message:s! category:s!
    """,
}

NOT_SIMULATED = {
    "crc", "semaphore_id", "read_offset", "read_steps", "write_offset", "write_steps",
    "ntff_version", "dtype", "num_elements", "raw_bir_id", "raw_penguin_id", "trigger_engine",
    "element_count_per_interval", "transpose_element_count_per_interval",
}  # fmt: skip
"""Columns that the reference says are always present, and that a simulation has no value for: they
are null."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    type: str
    """ "int64", "int32", "double", "string", "bool" or "list" (of int64)."""

    required: bool
    """Whether every row has a value."""


def _column(text: str) -> Column:
    name, _, kind = text.rstrip("!").partition(":")
    return Column(name, _TYPES[kind], text.endswith("!") and name not in NOT_SIMULATED)


TABLES = {
    name: tuple(_column(text) for text in columns.split()) for name, columns in _COLUMNS.items()
}
"""By name, the columns in the reference's order."""
