"""Tests of estimators with fit and predict."""
