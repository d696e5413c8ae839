"""Orders: where the worklist comes from, by HL7 v2 messages and from the central RIS."""
