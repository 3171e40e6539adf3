"""What tests of more than one folder share: each helper once."""
