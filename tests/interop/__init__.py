"""Tests of names and files of other libraries."""
