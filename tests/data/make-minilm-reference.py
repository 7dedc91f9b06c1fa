"""Writes minilm-reference.jsonl: texts and the embeddings that sentence-transformers gives for them.

Usage: make-minilm-reference.py MODEL_DIRECTORY > minilm-reference.jsonl

Run with sentence-transformers 6.2.0, transformers 5.23.0, tokenizers 0.23.3, torch 2.15.0 and numpy 2.4.6 on Python 3.11.
"""

import json
import sys

from sentence_transformers import SentenceTransformer

LONG = (
    "The refund policy applies to every order placed through the shop. A customer may return an item within thirty "
    "days of delivery, provided that it is unused and in its original packaging. "
)
TEXTS = [
    "a",
    "?",
    "refund",
    "Pengembalian",
    "How do refunds work?",
    "The quick brown fox jumps over the lazy dog.",
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG.",
    "Bagaimana cara mengajukan pengembalian dana untuk pesanan yang rusak?",
    "Pelanggan dapat mengembalikan barang dalam waktu tiga puluh hari setelah diterima, asalkan belum dipakai.",
    "Der Kunde kann die Ware innerhalb von dreißig Tagen zurückgeben; Größe und Farbe müssen übereinstimmen.",
    "Café, naïve, coöperate, São Paulo, Łódź, Þingvellir, Ελληνικά, кириллица.",
    "返品は三十日以内に可能です。商品は未使用でなければなりません。",
    "环境变量配置错误,请检查数据库连接。",
    "반품은 배송 후 30일 이내에 가능합니다.",
    "يمكن للعميل إعادة المنتج خلال ثلاثين يومًا.",
    "Great service 👍🏽 would buy again 🎉🎉 family 👨‍👩‍👧‍👦 flag 🇮🇩",
    "fn main() { let total: u64 = (1..=10).filter(|n| n % 2 == 0).sum(); println!(\"{total}\"); }",
    "select id, title from documents where workspace_id = any (array(select my_workspaces())) order by id limit 8;",
    "{\"name\": \"helper\", \"values\": [1, 2.5, -3e10, null, true], \"nested\": {\"a\": \"b\"}}",
    "3.14159 2718281828 1,234,567.89 -40°C 50% $19.99 €1.000,00 2024-02-29T23:59:59Z",
    "https://example.com/a/b/c?query=one+two&page=3#section-4 and mail to someone@example.org",
    "tabs\tand\nnew lines\r\nand a bell \u0007 a null-like \u0001 soft\u00adhyphen zero\u200bwidth and no\u00a0break",
    "!!!!!!!!!!!! ?????? ...... ------ ###### ****** ~~~~~~ ______ (((()))) [[[]]]",
    "donaudampfschifffahrtsgesellschaftskapitaenspatentantragsformularausfuellhilfe",
    "x" * 150,
    "  leading and trailing white space, and     many     blanks  \n\n",
    LONG * 3,
    LONG * 12,
    " ".join(f"word{n} nomor {n * 37} größe" for n in range(200)),
]


def main() -> None:
    model = SentenceTransformer(sys.argv[1], device="cpu")
    assert len(TEXTS) == 29
    for text in TEXTS:
        embedding = model.encode([text], normalize_embeddings=True)[0]
        values = [float(f"{value:.7g}") for value in embedding]
        print(json.dumps({"text": text, "embedding": values}, ensure_ascii=False))


main()
