"""The cases of broken and hostile input, and the tests that show what becomes of them.

A test says which it shows: `@pytest.mark.bad_input(7)`. Outcomes: A abort or close, R reject with
the proper status, S store as it came and flag. `python tests/hostile/cases.py` writes the table
below anew from the marks; a test holds it to them.

 1  A: PDU length of 4 GiB
      dimse/test_dimse_hostile.py::test_not_an_association_request
      dimse/test_dimse_hostile.py::test_broken_on_an_association
      hostile/test_hostile_wire.py::test_what_is_no_request_to_associate_is_aborted
      hostile/test_hostile_wire.py::test_what_breaks_an_association_aborts_it
 2  A: PDU length of 0
      dimse/test_dimse_hostile.py::test_not_an_association_request
      hostile/test_hostile_wire.py::test_what_is_no_request_to_associate_is_aborted
      hostile/test_hostile_wire.py::test_what_breaks_an_association_aborts_it
 3  A: unknown PDU type
      dimse/test_dimse_hostile.py::test_not_an_association_request
      dimse/test_dimse_hostile.py::test_broken_on_an_association
      hostile/test_hostile_wire.py::test_what_is_no_request_to_associate_is_aborted
      hostile/test_hostile_wire.py::test_what_breaks_an_association_aborts_it
 4  A: short header, then silence
      dimse/test_dimse_hostile.py::test_silence_ends_with_artim_without_a_word
      dimse/test_dimse_hostile.py::test_case_4_short_header_then_silence
      hostile/test_hostile_slow.py::test_a_request_that_stops_is_closed_at_the_deadline
      hostile/test_hostile_slow.py::test_a_silent_connection_is_closed
 5  A: one byte a second
      dimse/test_dimse_hostile.py::test_case_5_trickle_is_cut_at_the_deadline_of_the_whole_pdu
      dimse/test_dimse_hostile.py::test_case_5_trickle_inside_a_data_set
      dimse/test_dimse_hostile.py::test_case_5_trickled_pdus_end_at_the_deadline_of_the_data_set
      hostile/test_hostile_slow.py::test_a_byte_at_a_time_is_closed_at_the_deadline_of_the_pdu
      hostile/test_hostile_slow.py::test_a_data_set_byte_by_byte_is_ended_and_leaves_nothing
 6  A: PDV longer than its PDU
      dimse/test_dimse_hostile.py::test_broken_on_an_association
      hostile/test_hostile_wire.py::test_what_breaks_an_association_aborts_it
 7  A: PDV under 2 bytes
      dimse/test_dimse_hostile.py::test_broken_on_an_association
      hostile/test_hostile_wire.py::test_what_breaks_an_association_aborts_it
 8  A: PDV length of 2^31
      dimse/test_dimse_hostile.py::test_broken_on_an_association
      hostile/test_hostile_wire.py::test_what_breaks_an_association_aborts_it
 9  A: even or unknown presentation context ID
      dimse/test_dimse_hostile.py::test_broken_on_an_association
      dimse/test_dimse_hostile.py::test_case_9_even_context_id_in_the_request
      hostile/test_hostile_wire.py::test_what_is_no_request_to_associate_is_aborted
      hostile/test_hostile_wire.py::test_what_breaks_an_association_aborts_it
10  A: P-DATA before an association
      dimse/test_dimse_hostile.py::test_not_an_association_request
      hostile/test_hostile_wire.py::test_what_is_no_request_to_associate_is_aborted
11  A: second A-ASSOCIATE
      dimse/test_dimse_hostile.py::test_broken_on_an_association
      hostile/test_hostile_wire.py::test_what_breaks_an_association_aborts_it
12  A: HTTP GET on the port
      dimse/test_dimse_hostile.py::test_not_an_association_request
      hostile/test_hostile_wire.py::test_what_is_no_request_to_associate_is_aborted
13  A: TLS hello on the plain port
      dimse/test_dimse_hostile.py::test_not_an_association_request
      hostile/test_hostile_wire.py::test_what_is_no_request_to_associate_is_aborted
14  A: plain on the TLS port
      hostile/test_hostile_wire.py::test_a_plain_peer_on_the_tls_port_is_closed
      scp/test_scp_services.py::test_tls_and_plain_stand_side_by_side_and_silence_delays_nobody
15  silent TLS connection: others unaffected
      hostile/test_hostile_slow.py::test_a_silent_connection_is_closed
      hostile/test_hostile_wire.py::test_silent_and_slow_tls_peers_delay_others_by_less_than_100_ms
      scp/test_scp_services.py::test_tls_and_plain_stand_side_by_side_and_silence_delays_nobody
16  R: 200 idle connections: the excess
      hostile/test_hostile_wire.py::test_of_200_idle_associations_the_excess_is_rejected
      hostile/test_hostile_wire.py::test_200_silent_connections_keep_nobody_out
      scp/test_scp_services.py::test_more_associations_than_allowed_are_refused_for_now
17  128 contexts of many syntaxes: answered in full, bounded
      dimse/test_dimse_hostile.py::test_case_17_most_contexts_with_many_syntaxes_are_answered_in_full
      hostile/test_hostile_wire.py::test_128_contexts_of_many_syntaxes_are_answered_in_full
18  A: UID item overrun
      dimse/test_dimse_hostile.py::test_not_an_association_request
      hostile/test_hostile_wire.py::test_what_is_no_request_to_associate_is_aborted
19  A: duplicate context IDs
      dimse/test_dimse_hostile.py::test_case_19_duplicate_context_ids
      hostile/test_hostile_wire.py::test_what_is_no_request_to_associate_is_aborted
20  R: AE title not ASCII or with control characters
      dimse/test_dimse_hostile.py::test_case_20_calling_ae_title_of_odd_characters
      dimse/test_dimse_hostile.py::test_case_20_called_ae_title_of_odd_characters
      hostile/test_hostile_wire.py::test_who_may_not_associate_is_rejected
21  R: unknown calling AE title, recorded
      dimse/test_dimse_hostile.py::test_case_21_admission_refuses_a_calling_ae_title
      hostile/test_hostile_wire.py::test_who_may_not_associate_is_rejected
      hostile/test_hostile_wire.py::test_a_stranger_is_listed
      scp/test_scp_services.py::test_others_are_refused_and_listed
22  R: user identity of 64 KiB
      dimse/test_dimse_hostile.py::test_case_22_user_identity_of_64_kib
      hostile/test_hostile_wire.py::test_who_may_not_associate_is_rejected
23  PDVs of 1 byte: bounded CPU
      dimse/test_dimse_hostile.py::test_case_23_pdvs_of_one_byte
      dimse/test_dimse_hostile.py::test_empty_pdvs_are_bounded_too
      hostile/test_hostile_wire.py::test_fragments_of_one_byte_cost_little
24  A: last fragment never comes: at the object cap
      dimse/test_dimse_hostile.py::test_case_24_the_last_fragment_never_comes_while_data_does
      dimse/test_dimse_hostile.py::test_case_24_the_last_fragment_never_comes_at_all
      hostile/test_hostile_wire.py::test_a_data_set_without_an_end_is_aborted_at_the_cap
25  reset inside C-STORE: nothing acknowledged, no orphan
      dimse/test_dimse_hostile.py::test_case_25_reset_inside_a_message
      hostile/test_hostile_wire.py::test_a_reset_inside_a_store_leaves_nothing
      scp/test_scp_services.py::test_a_line_that_breaks_within_a_data_set_leaves_nothing
26  A: release inside data
      dimse/test_dimse_hostile.py::test_broken_on_an_association
      hostile/test_hostile_wire.py::test_what_breaks_an_association_aborts_it
27  R: no Affected SOP Instance UID
      dimse/test_dimse_hostile.py::test_cases_27_29_and_31_reach_the_service_which_answers
      hostile/test_hostile_messages.py::test_a_request_that_contradicts_itself_is_refused
28  R: UIDs of command and data set differ
      custody/test_custody_scan.py::test_uids_that_differ_from_the_command_are_refused
      hostile/test_hostile_messages.py::test_a_request_that_contradicts_itself_is_refused
      scp/test_scp_services.py::test_a_refusal_names_the_field
29  R: data set absent
      dimse/test_dimse_hostile.py::test_cases_27_29_and_31_reach_the_service_which_answers
      hostile/test_hostile_messages.py::test_a_request_that_contradicts_itself_is_refused
30  A: unknown command field
      dimse/test_dimse_hostile.py::test_broken_on_an_association
      hostile/test_hostile_wire.py::test_what_breaks_an_association_aborts_it
31  R: duplicate message ID, or answered
      dimse/test_dimse_hostile.py::test_cases_27_29_and_31_reach_the_service_which_answers
      hostile/test_hostile_messages.py::test_a_message_id_twice_is_answered_twice
32  C-CANCEL flood: bounded
      dimse/test_dimse_hostile.py::test_case_32_cancels_of_nothing_are_ignored_until_they_flood
      hostile/test_hostile_messages.py::test_a_flood_of_cancels_is_aborted
33  worklist query of wildcards alone: capped
      hostile/test_hostile_messages.py::test_what_is_asked_of_a_service_costs_little
34  R: junk date range
      hostile/test_hostile_messages.py::test_what_is_asked_of_a_service_costs_little
35  R: N-ACTION with 10^6 references
      hostile/test_hostile_messages.py::test_what_is_asked_of_a_service_costs_little
36  R: disk full: A700, never Success
      hostile/test_hostile_data.py::test_without_room_nothing_is_acknowledged
      scp/test_scp_services.py::test_a_full_disk_is_a700
37  S or R: sequences nested 240 and 10^5 deep
      custody/test_custody_readout.py::test_deep_nesting_is_kept_and_listing_it_is_bounded
      custody/test_custody_scan.py::test_deep_nesting_is_opaque_behind_the_identity
      custody/test_custody_scan.py::test_deep_nesting_before_the_identity_is_refused
      hostile/test_hostile_data.py::test_what_is_odd_is_stored_as_it_came
      hostile/test_hostile_data.py::test_what_cannot_be_kept_is_refused
38  S or R: 10^6 empty items
      custody/test_custody_readout.py::test_a_million_items_are_kept_but_not_parsed
      custody/test_custody_scan.py::test_a_million_items_are_opaque_in_bounded_time_and_memory
      hostile/test_hostile_data.py::test_what_is_odd_is_stored_as_it_came
      hostile/test_hostile_data.py::test_what_cannot_be_kept_is_refused
39  R: deflated bomb
      custody/test_custody_scan.py::test_a_deflated_bomb_is_refused_in_bounded_memory
      hostile/test_hostile_data.py::test_what_cannot_be_kept_is_refused
40  R: OW of 4 GiB, truncated
      custody/test_custody_scan.py::test_a_data_set_that_ends_within_an_element_is_refused
      hostile/test_hostile_data.py::test_what_cannot_be_kept_is_refused
      scp/test_scp_services.py::test_a_refusal_names_the_field
41  S: odd length
      custody/test_custody_scan.py::test_what_is_odd_is_stored_and_flagged
      hostile/test_hostile_data.py::test_what_is_odd_is_stored_as_it_came
42  S: undefined length, in UN and in others
      custody/test_custody_scan.py::test_un_of_undefined_length_holds_implicit_items
      custody/test_custody_scan.py::test_what_is_odd_is_stored_and_flagged
      hostile/test_hostile_data.py::test_what_is_odd_is_stored_as_it_came
43  S: wrong VR
      hostile/test_hostile_data.py::test_what_is_odd_is_stored_as_it_came
44  S: group 0002 in the data set: dropped on export
      custody/test_custody_ingest.py::test_group_2_of_the_data_set_is_not_meta_information
      custody/test_custody_ingest.py::test_group_2_of_the_data_set_is_dropped_on_export
      custody/test_custody_scan.py::test_group_2_in_the_data_set_is_ignored_and_flagged
      hostile/test_hostile_data.py::test_what_is_odd_is_stored_as_it_came
      hostile/test_hostile_export.py::test_whatever_the_encoding_only_group_2_is_taken_out
      hostile/test_hostile_export.py::test_what_can_be_followed_is_sifted_and_the_rest_stays
      hostile/test_hostile_export.py::test_encapsulated_pixels_stay_as_they_are
      hostile/test_hostile_export.py::test_sifting_takes_constant_memory
      hostile/test_hostile_export.py::test_neither_files_nor_destinations_get_it
45  S: duplicate tags
      custody/test_custody_scan.py::test_what_is_odd_is_stored_and_flagged
      hostile/test_hostile_data.py::test_what_is_odd_is_stored_as_it_came
46  S: tags out of order
      custody/test_custody_scan.py::test_what_is_odd_is_stored_and_flagged
      hostile/test_hostile_data.py::test_what_is_odd_is_stored_as_it_came
47  S: syntax lies about the pixels
      custody/test_custody_compress.py::test_what_lies_stays_as_it_is_and_says_why
      custody/test_custody_scan.py::test_a_syntax_that_lies_about_its_pixels_is_stored
      hostile/test_hostile_data.py::test_a_lie_is_stored_as_it_came_and_decoded_nowhere
      hostile/test_hostile_data.py::test_a_receiver_has_no_codecs_to_decode_with
      pixels/test_pixels_hostile.py::test_syntax_that_lies
48  S, decode R: Rows x Columns overflow
      custody/test_custody_compress.py::test_what_lies_stays_as_it_is_and_says_why
      hostile/test_hostile_data.py::test_a_lie_is_stored_as_it_came_and_decoded_nowhere
      hostile/test_hostile_data.py::test_a_receiver_has_no_codecs_to_decode_with
      pixels/test_pixels_hostile.py::test_attributes_that_cannot_be
49  S, decode R: frame count of 2^31 or negative
      custody/test_custody_compress.py::test_what_lies_stays_as_it_is_and_says_why
      hostile/test_hostile_data.py::test_a_lie_is_stored_as_it_came_and_decoded_nowhere
      hostile/test_hostile_data.py::test_a_receiver_has_no_codecs_to_decode_with
      pixels/test_pixels_hostile.py::test_attributes_that_cannot_be
50  S, decode R: stored above allocated bits
      custody/test_custody_compress.py::test_what_lies_stays_as_it_is_and_says_why
      hostile/test_hostile_data.py::test_a_lie_is_stored_as_it_came_and_decoded_nowhere
      hostile/test_hostile_data.py::test_a_receiver_has_no_codecs_to_decode_with
      pixels/test_pixels_hostile.py::test_attributes_that_cannot_be
51  S, decode R: palette index out of bounds
      custody/test_custody_compress.py::test_indices_beyond_the_palette_come_back
      hostile/test_hostile_data.py::test_a_lie_is_stored_as_it_came_and_decoded_nowhere
      hostile/test_hostile_data.py::test_a_receiver_has_no_codecs_to_decode_with
      pixels/test_pixels_render.py::test_palette_index_out_of_bounds
52  S, decode R: offset table beyond the end
      custody/test_custody_compress.py::test_what_came_compressed_is_never_touched
      hostile/test_hostile_data.py::test_a_lie_is_stored_as_it_came_and_decoded_nowhere
      hostile/test_hostile_data.py::test_a_receiver_has_no_codecs_to_decode_with
      pixels/test_pixels_frames.py::test_basic_table_beyond_the_end
      pixels/test_pixels_frames.py::test_lying_extended_table
53  S: no fragments
      custody/test_custody_compress.py::test_what_came_compressed_is_never_touched
      custody/test_custody_scan.py::test_encapsulated_pixels_without_fragments_are_stored
      hostile/test_hostile_data.py::test_a_lie_is_stored_as_it_came_and_decoded_nowhere
      hostile/test_hostile_data.py::test_a_receiver_has_no_codecs_to_decode_with
54  S, decode R: JPEG 2000 or JPEG-LS bomb
      custody/test_custody_compress.py::test_what_came_compressed_is_never_touched
      hostile/test_hostile_data.py::test_a_lie_is_stored_as_it_came_and_decoded_nowhere
      hostile/test_hostile_data.py::test_a_receiver_has_no_codecs_to_decode_with
      pixels/test_pixels_hostile.py::test_a_codestream_larger_than_its_data_set
55  S, decode R: RLE overrun
      custody/test_custody_compress.py::test_what_came_compressed_is_never_touched
      hostile/test_hostile_data.py::test_a_lie_is_stored_as_it_came_and_decoded_nowhere
      hostile/test_hostile_data.py::test_a_receiver_has_no_codecs_to_decode_with
      pixels/test_pixels_hostile.py::test_broken_rle
56  S: executable or HTML preamble: zeroed on export
      custody/test_custody_ingest.py::test_a_file_leaves_as_its_data_set_came_with_a_zeroed_preamble
57  S: private element of 100 MiB
      custody/test_custody_scan.py::test_a_private_element_of_100_mib_is_passed_over_in_little_memory
      hostile/test_hostile_data.py::test_a_private_element_of_100_mib_streams_in_and_out
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
CASES = {
    1: ("A", "PDU length of 4 GiB"),
    2: ("A", "PDU length of 0"),
    3: ("A", "unknown PDU type"),
    4: ("A", "short header, then silence"),
    5: ("A", "one byte a second"),
    6: ("A", "PDV longer than its PDU"),
    7: ("A", "PDV under 2 bytes"),
    8: ("A", "PDV length of 2^31"),
    9: ("A", "even or unknown presentation context ID"),
    10: ("A", "P-DATA before an association"),
    11: ("A", "second A-ASSOCIATE"),
    12: ("A", "HTTP GET on the port"),
    13: ("A", "TLS hello on the plain port"),
    14: ("A", "plain on the TLS port"),
    15: ("", "silent TLS connection: others unaffected"),
    16: ("R", "200 idle connections: the excess"),
    17: ("", "128 contexts of many syntaxes: answered in full, bounded"),
    18: ("A", "UID item overrun"),
    19: ("A", "duplicate context IDs"),
    20: ("R", "AE title not ASCII or with control characters"),
    21: ("R", "unknown calling AE title, recorded"),
    22: ("R", "user identity of 64 KiB"),
    23: ("", "PDVs of 1 byte: bounded CPU"),
    24: ("A", "last fragment never comes: at the object cap"),
    25: ("", "reset inside C-STORE: nothing acknowledged, no orphan"),
    26: ("A", "release inside data"),
    27: ("R", "no Affected SOP Instance UID"),
    28: ("R", "UIDs of command and data set differ"),
    29: ("R", "data set absent"),
    30: ("A", "unknown command field"),
    31: ("R", "duplicate message ID, or answered"),
    32: ("", "C-CANCEL flood: bounded"),
    33: ("", "worklist query of wildcards alone: capped"),
    34: ("R", "junk date range"),
    35: ("R", "N-ACTION with 10^6 references"),
    36: ("R", "disk full: A700, never Success"),
    37: ("S or R", "sequences nested 240 and 10^5 deep"),
    38: ("S or R", "10^6 empty items"),
    39: ("R", "deflated bomb"),
    40: ("R", "OW of 4 GiB, truncated"),
    41: ("S", "odd length"),
    42: ("S", "undefined length, in UN and in others"),
    43: ("S", "wrong VR"),
    44: ("S", "group 0002 in the data set: dropped on export"),
    45: ("S", "duplicate tags"),
    46: ("S", "tags out of order"),
    47: ("S", "syntax lies about the pixels"),
    48: ("S, decode R", "Rows x Columns overflow"),
    49: ("S, decode R", "frame count of 2^31 or negative"),
    50: ("S, decode R", "stored above allocated bits"),
    51: ("S, decode R", "palette index out of bounds"),
    52: ("S, decode R", "offset table beyond the end"),
    53: ("S", "no fragments"),
    54: ("S, decode R", "JPEG 2000 or JPEG-LS bomb"),
    55: ("S, decode R", "RLE overrun"),
    56: ("S", "executable or HTML preamble: zeroed on export"),
    57: ("S", "private element of 100 MiB"),
}


@cache
def marks(root: Path = TESTS) -> dict[int, list[str]]:
    """For each case the tests marked with it, as file::function, in order."""
    found: dict[int, list[str]] = {number: [] for number in CASES}
    for path in sorted(root.rglob("test_*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                name = f"{path.relative_to(root)}::{function.name}"
                for number in _numbers(function):
                    tests = found.setdefault(number, [])
                    if name not in tests:
                        tests.append(name)
    return found


def _numbers(function: ast.FunctionDef) -> Iterator[int]:
    """The numbers in every bad_input(...) among the decorators of a test."""
    for decorator in function.decorator_list:
        for call in ast.walk(decorator):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("bad_input"):
                for argument in call.args:
                    yield int(ast.literal_eval(argument))


def table() -> str:
    """Every case with its outcome and its tests."""
    lines = []
    for number, tests in marks().items():
        outcome, words = CASES.get(number, ("", "not a case of this list"))
        lines.append(f"{number:2}  {f'{outcome}: ' if outcome else ''}{words}")
        lines += [f"      {test}" for test in tests]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table into this file's docstring."""
    path = Path(__file__)
    head, words, rest = path.read_text().partition("a test holds it to them.\n\n")
    path.write_text(head + words + table() + rest[rest.index('"""\n') :])


if __name__ == "__main__":
    main()
