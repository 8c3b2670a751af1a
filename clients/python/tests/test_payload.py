"""Payloads and lines; run with `python -m unittest discover -s tests`."""

import json
import math
import unittest
from decimal import Decimal

from google.protobuf.struct_pb2 import ListValue, NullValue, Value

from oncelog import json_of, payload_of, set_json
from oncelog.lines import event_of, line_of
from oncelog.v1.aggregator_pb2 import Event, StoredEvent

LINE = (
    '{"topic":"t","event_id":"1","timestamp":"2026-01-01T00:00:00Z","source":"s",'
    '"payload":{"id":9007199254740993,"a":[1.50,1e400]},"attributes":{"k":"v"}}'
)


class Payloads(unittest.TestCase):
    def test_a_struct_is_printed_without_the_zero_of_a_double(self) -> None:
        event = Event(json={"n": 12, "f": 0.1, "a": [None, True, "é\n", {}], "z": -0.0, "big": 2.0**60})
        text = '{"a":[null,true,"é\\n",{}],"big":1152921504606846976,"f":0.1,"n":12,"z":-0.0}'
        self.assertEqual(json_of(event), text)

    def test_what_json_does_not_have_is_text(self) -> None:
        values = [Value(number_value=number) for number in (math.nan, math.inf, -math.inf)]
        values += [Value(), Value(null_value=NullValue.NULL_VALUE)]
        event = Event()
        event.json.fields["l"].list_value.CopyFrom(ListValue(values=values))
        self.assertEqual(json_of(event), '{"l":["NaN","Infinity","-Infinity",null,null]}')

    def test_text_is_given_back_exactly(self) -> None:
        text = '{"a":0.12345678901234567890,"b":0.5,"c":9007199254740993}'
        event = Event(json_text=text)
        self.assertEqual(json_of(event), text)
        self.assertEqual(
            payload_of(event), {"a": Decimal("0.12345678901234567890"), "b": 0.5, "c": 9007199254740993}
        )
        set_json(event, {"id": 10**30})
        self.assertEqual(event.json_text, '{"id": 1000000000000000000000000000000}')
        self.assertIsNone(json_of(Event(data=b"x")))
        self.assertIsNone(payload_of(Event()))


class Lines(unittest.TestCase):
    def test_a_line_keeps_its_digits(self) -> None:
        event = event_of(LINE)
        self.assertEqual(event.json_text, '{"id":9007199254740993,"a":[1.50,1e400]}')
        listed = line_of(StoredEvent(event=event, sequence=2**63))
        self.assertIn('"payload":{"id":9007199254740993,"a":[1.50,1e400]}', listed)
        self.assertEqual(json.loads(listed)["sequence"], 2**63)
        self.assertEqual(event_of(listed), event)

    def test_bytes_come_back(self) -> None:
        event = event_of(LINE.replace('"payload":{', '"payload":null,"data":"AAH/","attributes":{},"x":{').split(',"x"')[0] + "}")
        self.assertEqual(event.data, b"\x00\x01\xff")
        self.assertEqual(event_of(line_of(StoredEvent(event=event))), event)

    def test_what_is_no_event_is_told(self) -> None:
        for line, says in (
            ("[]", "an event object"),
            ('{"topik":"t"}', "topik: not a field"),
            ('{"topic":7}', "topic: a string"),
            ("{} {}", "more than one"),
            ('{"topic":"t","topic":"u"}', "topic: given twice"),
            ('{"topic":"t"}', "payload: missing"),
            ('{"payload":{"n":NaN}}', "NaN is not JSON"),
            (LINE.replace('"attributes"', '"data":"AA==","attributes"'), "data: given beside"),
        ):
            with self.assertRaisesRegex(ValueError, says):
                event_of(line)


if __name__ == "__main__":
    unittest.main()
