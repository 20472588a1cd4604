"""Many experiments that differ in a few settings each: trained, evaluated, compared in a table."""
