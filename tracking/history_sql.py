"""The statements of history.py, in the order in which they run. Each works on whole sets."""

# What the file says, one row a line; gone with the connection.
STAGE = """
CREATE TEMPORARY TABLE history_line (
    line bigint, kind smallint, email text, campaign text, at timestamptz, url text, method text, user_agent text,
    ip text, status text)
"""
COPY_LINES = "COPY history_line FROM STDIN"
MAKE_PEOPLE = "CREATE TEMPORARY TABLE history_person (email text, subscriber_id bigint, consent text)"

# Addresses as a platform exports them mostly are their own key; the others are normalised (history._find_others).
FIND_PLAIN = """
INSERT INTO history_person
SELECT l.email, r.id, r.tracking_consent
  FROM (SELECT DISTINCT email FROM history_line) l
  JOIN subscribers_subscriber r ON r.email_key = lower(l.email)
  JOIN subscribers_subscription u ON u.subscriber_id = r.id AND u.list_id = %(list)s
"""
OTHERS = """
SELECT DISTINCT l.email FROM history_line l
 WHERE l.email > %(after)s AND NOT EXISTS (SELECT FROM history_person p WHERE p.email = l.email)
 ORDER BY 1 LIMIT %(limit)s
"""
FIND_OTHERS = """
INSERT INTO history_person
SELECT k.email, r.id, r.tracking_consent
  FROM unnest(%(emails)s::text[], %(keys)s::text[]) AS k (email, key)
  JOIN subscribers_subscriber r ON r.email_key = k.key
  JOIN subscribers_subscription u ON u.subscriber_id = r.id AND u.list_id = %(list)s
"""

# Campaigns that at least one known person was sent; they get their number at the end.
SENT_CAMPAIGNS = """
SELECT l.campaign, min(l.at), max(l.at) FROM history_line l JOIN history_person p USING (email)
 WHERE l.kind = 0 GROUP BY l.campaign ORDER BY min(l.at)
"""
CAMPAIGNS = """
SELECT id FROM campaigns_campaign
 WHERE list_id = %(list)s AND external_key IN (SELECT DISTINCT campaign FROM history_line) AND external_key <> ''
"""
SPAN = "SELECT min(at), max(at) FROM history_line WHERE kind <> 0"

# From here on in one transaction. A fact is a line of a known person and campaign, each identity once.
FACTS = """
CREATE TEMPORARY TABLE history_fact ON COMMIT DROP AS
SELECT DISTINCT ON (c.id, p.subscriber_id, l.kind, l.url, l.at)
       l.line, l.kind, c.id AS campaign_id, p.subscriber_id, p.consent, l.at, l.url, l.method, l.user_agent, l.ip,
       l.status, NULL::text AS refused
  FROM history_line l
  JOIN history_person p USING (email)
  JOIN campaigns_campaign c ON c.list_id = %(list)s AND c.external_key = l.campaign AND c.external_key <> ''
 ORDER BY c.id, p.subscriber_id, l.kind, l.url, l.at, l.line
"""
REFUSED_BEFORE = """
SELECT l.line, CASE WHEN p.email IS NULL THEN 'not a subscriber of this list'
                    ELSE 'no line says that this campaign was sent' END, l.email, l.campaign
  FROM history_line l LEFT JOIN history_person p USING (email)
 WHERE p.email IS NULL OR NOT EXISTS (
       SELECT FROM campaigns_campaign c
        WHERE c.list_id = %(list)s AND c.external_key = l.campaign AND c.external_key <> '')
"""
# What an earlier import has stored already.
DROP_KNOWN = (
    """
DELETE FROM history_fact f USING campaigns_delivery d
 WHERE f.kind = 0 AND d.campaign_id = f.campaign_id AND d.subscriber_id = f.subscriber_id AND d.sent_at = f.at
   AND d.campaign_id = ANY(%(campaigns)s)
""",
    """
DELETE FROM history_fact f USING tracking_event e
 WHERE f.kind = e.kind AND e.campaign_id = f.campaign_id AND e.subscriber_id = f.subscriber_id AND e.at = f.at
   AND e.at BETWEEN %(first)s AND %(last)s AND e.campaign_id = ANY(%(campaigns)s)
   AND (f.kind <> 2 OR EXISTS (SELECT FROM campaigns_link k
                                WHERE k.campaign_id = f.campaign_id AND k.index = e.link AND k.url = f.url))
""",
    # Of people who agreed to the date only, the date is all that was stored.
    """
DELETE FROM history_fact f USING subscribers_subscription u, subscribers_engagement e
 WHERE f.consent = 'hygiene' AND f.kind = 1 AND u.list_id = %(list)s AND u.subscriber_id = f.subscriber_id
   AND e.subscription_id = u.id AND f.at < e.opened_at + interval '1 day'
""",
)
REFUSE = (
    """
UPDATE history_fact SET refused = 'this person does not agree to tracking' WHERE kind IN (1, 2) AND consent = 'none'
""",
    """
UPDATE history_fact SET refused = 'this person agrees to the date of the last open only'
 WHERE kind = 2 AND consent = 'hygiene'
""",
    """
UPDATE history_fact f SET refused = 'this person got the campaign at another time already'
 WHERE f.kind = 0 AND (
       EXISTS (SELECT FROM campaigns_delivery d WHERE d.campaign_id = ANY(%(campaigns)s)
                  AND d.campaign_id = f.campaign_id AND d.subscriber_id = f.subscriber_id)
    OR EXISTS (SELECT FROM history_fact g WHERE g.kind = 0 AND g.campaign_id = f.campaign_id
                  AND g.subscriber_id = f.subscriber_id AND g.at < f.at))
""",
    """
UPDATE history_fact f SET refused = 'no line says that this person was sent the campaign'
 WHERE f.kind <> 0 AND f.refused IS NULL
   AND NOT EXISTS (SELECT FROM history_fact g WHERE g.kind = 0 AND g.campaign_id = f.campaign_id
                      AND g.subscriber_id = f.subscriber_id)
   AND NOT EXISTS (SELECT FROM campaigns_delivery d WHERE d.campaign_id = ANY(%(campaigns)s)
                      AND d.campaign_id = f.campaign_id AND d.subscriber_id = f.subscriber_id)
""",
)
REFUSED_FACTS = """
SELECT f.line, f.refused, l.email, l.campaign FROM history_fact f JOIN history_line l USING (line)
 WHERE f.refused IS NOT NULL
"""

# The ledger: accepted (3), delivered (1) unless a bounce says otherwise (2).
DELIVERIES = """
INSERT INTO campaigns_delivery (campaign_id, subscriber_id, batch_id, sent_at, state, attempts, outcome)
SELECT campaign_id, subscriber_id, 0, at, 3, 1, 1 FROM history_fact
 WHERE kind = 0 AND refused IS NULL ORDER BY campaign_id, subscriber_id
"""
BOUNCES = """
WITH fact AS (SELECT * FROM history_fact WHERE kind = 5 AND refused IS NULL), event AS (
    INSERT INTO tracking_event (at, last_at, campaign_id, subscriber_id, kind, is_final, source, detail)
    SELECT at, at, campaign_id, subscriber_id, 5, true, 'history', status FROM fact
)
UPDATE campaigns_delivery d SET outcome = 2 FROM (SELECT DISTINCT campaign_id, subscriber_id FROM fact) b
 WHERE d.campaign_id = ANY(%(campaigns)s)
   AND d.campaign_id = b.campaign_id AND d.subscriber_id = b.subscriber_id AND d.outcome < 2
"""
# Who bounced and has taken no mail of this list since.
BOUNCED = """
SELECT r.email_key, f.status, f.at
  FROM history_fact f JOIN subscribers_subscriber r ON r.id = f.subscriber_id
 WHERE f.kind = 5 AND f.refused IS NULL AND f.status <> '' AND r.suppressed_at IS NULL
   AND NOT EXISTS (
       SELECT FROM campaigns_campaign c
         JOIN campaigns_delivery d ON d.campaign_id = c.id AND d.subscriber_id = f.subscriber_id
        WHERE c.list_id = %(list)s AND d.state = 3 AND d.outcome <> 2 AND d.sent_at > f.at)
 ORDER BY f.subscriber_id, f.at
"""
LINKS = """
INSERT INTO campaigns_link (campaign_id, index, url)
SELECT campaign_id, coalesce((SELECT max(k.index) + 1 FROM campaigns_link k WHERE k.campaign_id = f.campaign_id), 0)
                    + row_number() OVER (PARTITION BY campaign_id ORDER BY url) - 1, url
  FROM (SELECT DISTINCT campaign_id, url FROM history_fact WHERE kind = 2 AND refused IS NULL) f
 WHERE NOT EXISTS (SELECT FROM campaigns_link k WHERE k.campaign_id = f.campaign_id AND k.url = f.url)
"""
# Opens and clicks by delivery, with those that were stored before (is_new false) as company for the verdict.
HITS = """
SELECT campaign_id, subscriber_id, kind, at, method, user_agent, NULL AS client, ip, k.index, d.sent_at, f.consent, true
  FROM history_fact f
  JOIN campaigns_delivery d USING (campaign_id, subscriber_id)
  LEFT JOIN campaigns_link k USING (campaign_id, url)
 WHERE f.kind IN (1, 2) AND f.refused IS NULL AND d.campaign_id = ANY(%(campaigns)s)
UNION ALL
SELECT campaign_id, subscriber_id, kind, at, method, NULL, client, '', link, NULL, 'full', false
  FROM tracking_event e
 WHERE e.kind IN (1, 2) AND e.campaign_id = ANY(%(older)s)
   AND (e.campaign_id, e.subscriber_id) IN (
       SELECT campaign_id, subscriber_id FROM history_fact WHERE kind IN (1, 2) AND refused IS NULL)
 ORDER BY 1, 2, 4, 3
"""
COPY_EVENTS = """
COPY tracking_event (at, last_at, campaign_id, subscriber_id, delay_ms, kind, link, verdict, is_final, method, client,
                     network, source, reasons) FROM STDIN
"""
# What the verdicts of one delivery come to.
MAKE_SIGNS = """
CREATE TEMPORARY TABLE history_sign (
    campaign_id bigint, subscriber_id bigint, seen smallint, first_open timestamptz, last_open timestamptz,
    first_click timestamptz, last_click timestamptz, open_hits integer, click_hits integer) ON COMMIT DROP
"""
COPY_SIGNS = "COPY history_sign FROM STDIN"
LEDGER_SIGNS = """
UPDATE campaigns_delivery d
   SET seen = d.seen | s.seen, opened_at = least(d.opened_at, s.first_open),
       clicked_at = least(d.clicked_at, s.first_click)
  FROM history_sign s
 WHERE d.campaign_id = ANY(%(campaigns)s)
   AND d.campaign_id = s.campaign_id AND d.subscriber_id = s.subscriber_id AND s.seen > 0
"""
CAMPAIGN_SPANS = """
UPDATE campaigns_campaign c SET started_at = d.first, finished_at = d.last, audience = d.sent
  FROM (SELECT campaign_id, min(sent_at) AS first, max(sent_at) AS last, count(*) AS sent
          FROM campaigns_delivery WHERE campaign_id = ANY(%(campaigns)s) GROUP BY campaign_id) d
 WHERE c.id = d.campaign_id
"""
FIGURES = """
INSERT INTO campaigns_campaignfigures AS f (campaign_id, opens_raw, opens_human, clicks_raw, clicks_human, bounced,
                                            open_hits, click_hits)
SELECT d.campaign_id, count(*) FILTER (WHERE d.seen & 1 = 1), count(d.opened_at),
       count(*) FILTER (WHERE d.seen & 2 = 2), count(d.clicked_at), count(*) FILTER (WHERE d.outcome = 2),
       coalesce(max(s.opens), 0), coalesce(max(s.clicks), 0)
  FROM campaigns_delivery d
  LEFT JOIN (SELECT campaign_id, sum(open_hits) AS opens, sum(click_hits) AS clicks
               FROM history_sign GROUP BY campaign_id) s USING (campaign_id)
 WHERE d.campaign_id = ANY(%(campaigns)s) GROUP BY d.campaign_id
ON CONFLICT (campaign_id) DO UPDATE SET
    opens_raw = excluded.opens_raw, opens_human = excluded.opens_human, clicks_raw = excluded.clicks_raw,
    clicks_human = excluded.clicks_human, bounced = excluded.bounced,
    open_hits = f.open_hits + excluded.open_hits, click_hits = f.click_hits + excluded.click_hits
"""

# Issues of the list in the order of their sending, with the number they had.
ORDER = """
SELECT id, number FROM campaigns_campaign
 WHERE list_id = %(list)s AND (number IS NOT NULL OR id = ANY(%(campaigns)s))
 ORDER BY coalesce(finished_at, started_at), id
"""
RENUMBER = """
UPDATE campaigns_campaign c SET number = n.number
  FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY AS n (id, number) WHERE c.id = n.id
   AND c.number IS DISTINCT FROM n.number
"""

# Bits of what this import brought.
BITS_DELIVERED = """
INSERT INTO subscribers_engagement AS e (subscription_id, delivered, engaged)
SELECT u.id, bit_or(bits_single(c.number, %(width)s)), bits_pad(B'', %(width)s)
  FROM history_fact f
  JOIN campaigns_campaign c ON c.id = f.campaign_id
  JOIN subscribers_subscription u ON u.list_id = %(list)s AND u.subscriber_id = f.subscriber_id
 WHERE f.kind = 0 AND f.refused IS NULL AND f.consent = 'full'
 GROUP BY u.id ORDER BY u.id
ON CONFLICT (subscription_id) DO UPDATE SET
    delivered = bits_or(e.delivered, excluded.delivered), engaged = bits_pad(e.engaged, %(width)s)
"""
BITS_BOUNCED = """
UPDATE subscribers_engagement e SET delivered = e.delivered & ~ b.gone
  FROM (SELECT u.id, bit_or(bits_single(c.number, %(width)s)) AS gone
          FROM history_fact f
          JOIN campaigns_campaign c ON c.id = f.campaign_id
          JOIN subscribers_subscription u ON u.list_id = %(list)s AND u.subscriber_id = f.subscriber_id
         WHERE f.kind = 5 AND f.refused IS NULL GROUP BY u.id) b
 WHERE e.subscription_id = b.id AND length(e.delivered) = %(width)s
"""
BITS_ENGAGED = """
INSERT INTO subscribers_engagement AS e (subscription_id, delivered, engaged, opened_at, clicked_at)
SELECT u.id, bits_pad(B'', %(width)s),
       CASE WHEN r.tracking_consent = 'full' THEN bit_or(bits_single(c.number, %(width)s))
            ELSE bits_pad(B'', %(width)s) END,
       CASE WHEN r.tracking_consent = 'full' THEN max(s.last_open) ELSE date_trunc('day', max(s.last_open), 'UTC') END,
       CASE WHEN r.tracking_consent = 'full' THEN max(s.last_click) END
  FROM history_sign s
  JOIN campaigns_campaign c ON c.id = s.campaign_id
  JOIN subscribers_subscription u ON u.list_id = %(list)s AND u.subscriber_id = s.subscriber_id
  JOIN subscribers_subscriber r ON r.id = u.subscriber_id
 WHERE coalesce(s.last_open, s.last_click) IS NOT NULL
 GROUP BY u.id, r.tracking_consent ORDER BY u.id
ON CONFLICT (subscription_id) DO UPDATE SET
    delivered = bits_pad(e.delivered, %(width)s), engaged = bits_or(e.engaged, excluded.engaged),
    opened_at = greatest(e.opened_at, excluded.opened_at), clicked_at = greatest(e.clicked_at, excluded.clicked_at)
"""
# Age and window count from the earlier of the subscription and the first mail.
AGES = """
UPDATE subscribers_subscription u SET created_at = f.first
  FROM (SELECT subscriber_id, min(at) AS first FROM history_fact WHERE kind = 0 AND refused IS NULL GROUP BY 1) f
 WHERE u.list_id = %(list)s AND u.subscriber_id = f.subscriber_id AND u.created_at > f.first
"""
