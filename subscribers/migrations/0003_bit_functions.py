from django.db import migrations

# Small functions over `bit varying`, which PostgreSQL inlines into the statements that use them. The first
# character is issue 1; strings of different length are padded with zeros on the right before they are combined.
FUNCTIONS = """
CREATE FUNCTION bits_pad(bits varbit, width integer) RETURNS varbit
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN bits || repeat('0', greatest(width - length(bits), 0))::varbit;

CREATE FUNCTION bits_or(one varbit, other varbit) RETURNS varbit
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN bits_pad(one, length(other)) | bits_pad(other, length(one));

CREATE FUNCTION bits_and(one varbit, other varbit) RETURNS varbit
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN bits_pad(one, length(other)) & bits_pad(other, length(one));

CREATE FUNCTION bits_single(number integer, width integer) RETURNS varbit
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN set_bit(repeat('0', width)::varbit, number - 1, 1);

CREATE FUNCTION bits_clear(bits varbit, number integer) RETURNS varbit
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN number BETWEEN 1 AND length(bits) THEN set_bit(bits, number - 1, 0) ELSE bits END;

CREATE FUNCTION bits_last(bits varbit) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN length(bits) - strpos(reverse(bits::text) || '1', '1') + 1;
"""
REVERSE = """
DROP FUNCTION bits_last(varbit);
DROP FUNCTION bits_clear(varbit, integer);
DROP FUNCTION bits_single(integer, integer);
DROP FUNCTION bits_and(varbit, varbit);
DROP FUNCTION bits_or(varbit, varbit);
DROP FUNCTION bits_pad(varbit, integer);
"""


class Migration(migrations.Migration):
    dependencies = [("subscribers", "0002_engagement_storage")]

    operations = [migrations.RunSQL(FUNCTIONS, REVERSE)]
